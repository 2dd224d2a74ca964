// Package order sorts what is short: containers, images, networks, the files
// of a step.
//
// slices.SortFunc is compiled anew for every type it sorts, some 15 kB of
// program each, and as many of the table that traces need. Here one copy sorts
// all. A slice that may have thousands of elements is what slices is for.
package order

import "sort"

// By sorts s as compare has it; what is equal stays in its order.
func By[T any](s []T, compare func(a, b T) int) {
	sort.SliceStable(s, func(i, j int) bool { return compare(s[i], s[j]) < 0 })
}
