package bootconfig

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/minke-os/minke/internal/errdef"
)

// A Jetson TX2 has in its boot partition, which no file system is on, which of
// six configurations its ports have. Facts of balena's supervisor: a byte, three
// times, that stands for one.
var (
	odmOffsets = []int64{1659, 5243, 18043}
	odmBytes   = []byte{0, 1, 6, 7, 2, 3} // of configurations 1 to 6
)

func hasODMData(deviceType string) bool {
	ok, _ := path.Match("*-tx2", deviceType) // the pattern is right
	return ok
}

const odmPrefix, odmName = "HOST_ODMDATA_", "configuration"

// odmData is the partition, which the kernel keeps from being written but for a
// moment: force_ro beside it. The configuration stays when its variable goes, for
// nobody knows which it was. After a death in between the three bytes differ, and the
// next attempt makes them the same.
func odmData(root string) Backend {
	const device = "mmcblk0boot0"
	return Backend{odmPrefix, odm{filepath.Join(root, "/dev", device), filepath.Join(root, "/sys/block", device, "force_ro")}}
}

type odm struct{ device, readOnly string }

func (o odm) current() (map[string]string, error) {
	had, err := o.read()
	if err != nil {
		return nil, err
	}
	if had[0] != had[1] || had[0] != had[2] {
		return nil, errdef.Unavailable.Errorf("%s has %v for its configuration, of which one is to be; set %s%s", o.device, had, odmPrefix, odmName)
	}
	return map[string]string{odmName: strconv.Itoa(slices.Index(odmBytes, had[0]) + 1)}, nil
}

// read gives the bytes at the offsets. Others than those of configurations are
// those of another partition table, which is not ours to write.
func (o odm) read() ([]byte, error) {
	f, err := os.Open(o.device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := make([]byte, len(odmOffsets))
	for i, at := range odmOffsets {
		if _, err := f.ReadAt(out[i:i+1], at); err != nil {
			return nil, fmt.Errorf("%s: byte %d: %w", o.device, at, err)
		}
		if !slices.Contains(odmBytes, out[i]) {
			return nil, errdef.Unsupported.Errorf("%s has %#x at byte %d, which is no configuration; it is left alone", o.device, out[i], at)
		}
	}
	return out, nil
}

func (o odm) set(want map[string]string, _ []string) (reboot bool, err error) {
	if err := only(odmPrefix, want, odmName); err != nil {
		return false, err
	}
	text, given := want[odmName]
	if !given {
		return false, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > len(odmBytes) {
		return false, errdef.Invalid.Errorf("%s%s: want a number from 1 to %d, not %q", odmPrefix, odmName, len(odmBytes), text)
	}
	b := odmBytes[n-1]
	other := func(x byte) bool { return x != b }
	had, err := o.read()
	if err != nil || !slices.ContainsFunc(had, other) {
		return false, err
	}
	if err := o.write(b); err != nil {
		return false, err
	}
	again, err := o.read()
	if err == nil && slices.ContainsFunc(again, other) {
		err = doesNotKeep(o.device)
	}
	return err == nil, err
}

func (o odm) write(b byte) (err error) {
	if err := o.protect("0"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.protect("1")) }()
	f, err := os.OpenFile(o.device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for _, at := range odmOffsets {
		if _, err = f.WriteAt([]byte{b}, at); err != nil {
			break
		}
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// protect switches whether the kernel refuses to write the partition.
func (o odm) protect(on string) error {
	f, err := os.OpenFile(o.readOnly, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(on)
	return errors.Join(err, f.Close())
}
