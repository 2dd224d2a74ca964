package contract

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/Masterminds/semver/v3"
)

func TestSatisfies(t *testing.T) {
	tests := []struct {
		in       string
		yes, not []string
	}{
		{"", []string{"0.0.1", "9.9.9"}, []string{"", "abc", "1.2.3.4"}},
		{"*", []string{"0.0.1", "12"}, []string{"1.-2"}},
		{"1.2.3", []string{"1.2.3", "v1.2.3", "1.2.3+rev4"}, []string{"1.2.4", "1.2.3-rc1"}},
		{"=1.2.3", []string{"1.2.3"}, []string{"1.2.2"}},
		{">=2.113", []string{"2.113.0", "2.113.15+rev1", "10"}, []string{"2.112.99", "2"}},
		{">= 2.113 < 3", []string{"2.113.0", "2.200.1"}, []string{"3.0.0", "2.0.0"}},
		{">1.2", []string{"1.3.0", "2.0.0"}, []string{"1.2.0", "1.2.9"}},
		{">1.2.3", []string{"1.2.4"}, []string{"1.2.3"}},
		{"<=1.2", []string{"1.2.9", "0.1.0"}, []string{"1.3.0"}},
		{"<=1.2.3", []string{"1.2.3", "1.2.3-rc1"}, []string{"1.2.4"}},
		{"~1.2.3", []string{"1.2.3", "1.2.9"}, []string{"1.3.0", "1.2.2"}},
		{"~1", []string{"1.0.0", "1.9.9"}, []string{"2.0.0"}},
		{"~1.2", []string{"1.2.0"}, []string{"1.3.0", "1.1.0"}},
		{"^1.2.3", []string{"1.2.3", "1.9.0"}, []string{"2.0.0", "2.0.0-rc1", "1.2.2"}},
		{"^0.2.3", []string{"0.2.3", "0.2.9"}, []string{"0.3.0"}},
		{"^0.0.3", []string{"0.0.3"}, []string{"0.0.4"}},
		{"^0.0", []string{"0.0.0", "0.0.9"}, []string{"0.1.0"}},
		{"^0", []string{"0.0.1", "0.9.0"}, []string{"1.0.0"}},
		{"1.x", []string{"1.0.0", "1.7.2"}, []string{"2.0.0", "0.9.0"}},
		{"1.2.*", []string{"1.2.0"}, []string{"1.3.0"}},
		{"1.2 - 2.0", []string{"1.2.0", "2.0.9"}, []string{"2.1.0", "1.1.9"}},
		{"1.2.3 - 2.0.0", []string{"1.2.3", "2.0.0"}, []string{"2.0.1"}},
		{"1.0.0 || ^3", []string{"1.0.0", "3.1.0"}, []string{"2.0.0"}},
		{">=2.0.0", []string{"2.1.0-rc1", "2.0.0"}, []string{"2.0.0-rc1"}},
		{">=2.0.0-rc.2", []string{"2.0.0-rc.2", "2.0.0-rc.10", "2.0.0-rc.2.1", "2.0.0-x", "2.0.0"}, []string{"2.0.0-rc.1", "2.0.0-1"}},
		{"latest", nil, []string{"1.0.0"}},
		{">=", nil, []string{"1.0.0"}},
		{"1.0.0 || nonsense", nil, []string{"1.0.0"}},
	}
	for _, tt := range tests {
		for _, v := range tt.yes {
			if !Satisfies(v, tt.in) {
				t.Errorf("Satisfies(%q, %q) = false, want true", v, tt.in)
			}
		}
		for _, v := range tt.not {
			if Satisfies(v, tt.in) {
				t.Errorf("Satisfies(%q, %q) = true, want false", v, tt.in)
			}
		}
	}
}

func parsed(t *testing.T, text string) (Contract, error) {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return Parse(v)
}

func TestUnmet(t *testing.T) {
	pi := []Offer{
		{DeviceType, "raspberrypi4-64", ""}, {Arch, "aarch64", ""}, {Supervisor, "", "19.0.5"},
		{OS, "balena-os", "6.5.1+rev2"}, {Kernel, "linux", "6.1.77"},
	}
	tests := []struct {
		name, contract string
		want           []string
	}{
		{"nothing-is-asked-for", `null`, nil},
		{"an-empty-list", `{"type":"sw.container","slug":"web","requires":[]}`, nil},
		{"all-is-there", `{"requires":[{"type":"hw.device-type","slug":"raspberrypi4-64"},{"type":"arch.sw","slug":"aarch64"},
			{"type":"sw.supervisor","version":">=12"},{"type":"sw.os","slug":"balena-os","version":"^6.5"},{"type":"sw.kernel","version":">=5.10"}]}`, nil},
		{"a-type-alone-asks-for-any", `{"requires":[{"type":"sw.os"}]}`, nil},
		{"another-board", `{"requires":[{"type":"hw.device-type","slug":"jetson-nano"}]}`,
			[]string{"hw.device-type jetson-nano (this device has raspberrypi4-64)"}},
		{"an-older-system", `{"requires":[{"type":"sw.os","slug":"balena-os","version":">=7"}]}`,
			[]string{"sw.os balena-os >=7 (this device has balena-os 6.5.1+rev2)"}},
		{"what-it-has-none-of", `{"requires":[{"type":"sw.l4t","version":">=32.2"}]}`, []string{"sw.l4t >=32.2 (this device has none)"}},
		{"name-and-version-of-one-offer", `{"requires":[{"type":"sw.os","slug":"debian","version":"^6.5"}]}`,
			[]string{"sw.os debian ^6.5 (this device has balena-os 6.5.1+rev2)"}},
		{"each-that-is-missing", `{"requires":[{"type":"arch.sw","slug":"amd64"},{"type":"sw.supervisor","version":"<10"},{"type":"sw.kernel"}]}`,
			[]string{"arch.sw amd64 (this device has aarch64)", "sw.supervisor <10 (this device has 19.0.5)"}},
		{"one-alternative-will-do", `{"requires":[{"or":[{"type":"hw.device-type","slug":"jetson-nano"},{"type":"hw.device-type","slug":"raspberrypi4-64"}]}]}`, nil},
		{"no-alternative-does", `{"requires":[{"or":[{"type":"arch.sw","slug":"amd64"},{"or":[{"type":"sw.l4t"}]}]}]}`, []string{"arch.sw amd64 or sw.l4t"}},
		{"data-is-not-offered", `{"requires":[{"type":"arch.sw","slug":"aarch64","data":{"cores":4}}]}`,
			[]string{"arch.sw aarch64 with data (this device has aarch64)"}},
		{"empty-data-asks-for-nothing", `{"requires":[{"type":"arch.sw","slug":"aarch64","data":{}}]}`, nil},
		{"a-range-that-is-none-is-never-met", `{"requires":[{"type":"sw.supervisor","version":"new"}]}`, []string{"sw.supervisor new (this device has 19.0.5)"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parsed(t, tt.contract)
			if err != nil {
				t.Fatalf("Parse = %v", err)
			}
			if got := c.Unmet(pi); !slices.Equal(got, tt.want) {
				t.Errorf("Unmet = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestOffers(t *testing.T) {
	tests := []struct {
		name string
		f    Facts
		want []Offer
	}{
		{"nothing-is-known", Facts{}, nil},
		{"balena", Facts{DeviceType: "raspberrypi4-64", Arch: "aarch64", Supervisor: "19.0.5", OS: "balena-os", OSVersion: "6.5.1+rev2", Kernel: "Linux", KernelRelease: "6.1.77-v8"},
			[]Offer{{DeviceType, "raspberrypi4-64", ""}, {Arch, "aarch64", ""}, {Supervisor, "", "19.0.5"}, {OS, "balena-os", "6.5.1+rev2"}, {Kernel, "linux", "6.1.77"}}},
		{"debian", Facts{OS: "debian", OSVersion: "13 (trixie)", OSVersionID: "13", Kernel: "Linux", KernelRelease: "6.12.48+deb13-amd64"},
			[]Offer{{OS, "debian", "13"}, {Kernel, "linux", "6.12.48"}}},
		{"jetson", Facts{Kernel: "Linux", KernelRelease: "4.9.140-l4t-r32.2+g3dcbed5"}, []Offer{{Kernel, "linux", "4.9.140"}, {L4T, "", "32.2"}}},
		{"jetson-with-three-parts", Facts{Kernel: "Linux", KernelRelease: "4.9.337-l4t-r32.7.4"}, []Offer{{Kernel, "linux", "4.9.337"}, {L4T, "", "32.7.4"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Offers(tt.f); !slices.Equal(got, tt.want) {
				t.Errorf("Offers(%+v) = %v, want %v", tt.f, got, tt.want)
			}
		})
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	deep := strings.Repeat(`{"or":[`, 12) + `{"type":"sw.os"}` + strings.Repeat(`]}`, 12)
	for text, want := range map[string]string{
		`"x"`:                                  "contract: want an object",
		`{"requires":{}}`:                      "contract.requires: want a list",
		`{"requires":["x"]}`:                   "contract.requires.0: want an object",
		`{"requires":[{"type":"sw.os"},{}]}`:   "contract.requires.1.type: want one of",
		`{"requires":[{"type":"hw.wings"}]}`:   `contract.requires.0.type: want one of sw.supervisor, sw.l4t, sw.os, sw.kernel, hw.device-type, arch.sw, not "hw.wings"`,
		`{"requires":[{"type":7}]}`:            "contract.requires.0.type: want a string, not 7",
		`{"requires":[{"or":[]}]}`:             "contract.requires.0.or: want at least one alternative",
		`{"requires":[{"or":[{"type":"x"}]}]}`: "contract.requires.0.or.0.type: want one of",
		`{"requires":[` + deep + `]}`:          "alternatives within alternatives",
	} {
		if _, err := parsed(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%s) = %v, want %q", text, err, want)
		}
	}
}

func FuzzSatisfies(f *testing.F) {
	for _, s := range []string{"1.2.3", ">=1 <2", "^0.0.3 || ~2", "1 - 2", "x", "<", "1.2.3-rc.1+b"} {
		f.Add("1.2.3", s)
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, v, in string) {
		Satisfies(v, in)
		if _, err := semver.StrictNewVersion(v); err == nil && !Satisfies(v, ">="+v) {
			t.Errorf("%q is not in >= itself", v)
		}
	})
}
