package model

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// A Device is what a container may learn about the device it runs on.
type Device struct {
	UUID, Name, Type, Arch string
	OSVersion              string // PRETTY_NAME of the host's os-release
	BoardRev               string
	Hostname               string
	LockRoot               string // host directory of update locks, <root>/<app>/<service>
	EngineSocket           string // host path
	APIPort                int
	CloudKey, CloudURL     string
	HasModules             bool // the host has /lib/modules
	HasFirmware            bool

	// ServiceKey looks up the API key of a service.
	ServiceKey func(AppID, string) string
}

// An AppSpec is an application as engine objects.
type AppSpec struct {
	ID       AppID
	UUID     string
	Name     string
	Commit   string
	Frozen   bool   // whatever there is of it stays as it is
	Services []Spec // by name
	Networks []NetworkSpec
	Volumes  []VolumeSpec
}

// A Spec is everything the engine is asked for to run one service.
type Spec struct {
	App       AppID
	Service   string
	Name      string // the container's
	Image     string // a reference; the plan resolves it
	Running   bool
	Config    *container.Config
	Host      *container.HostConfig
	Endpoints []Endpoint // the first goes into the create call
	Networks  []string   // engine names of networks it needs
	Volumes   []string
	NetworkOf string // share the network of this service, "" for an own one
	UsesAPI   bool   // attached to the supervisor's network
	DependsOn []Dependency
	Strategy  Strategy
	HandOver  time.Duration // how long the old container may stay
	Reboots   bool          // a new container starts after a reboot only
	Print     Fingerprint
	Warnings  []string // what was asked for and is not done
}

// An Endpoint attaches a container to a network.
type Endpoint struct {
	Network  string
	Settings *network.EndpointSettings
}

// A NetworkSpec is one network of an application.
type NetworkSpec struct {
	Name       string // the engine's
	Driver     string
	Options    map[string]string
	Labels     map[string]string
	Internal   bool
	IPv6       bool
	ConfigOnly bool
	IPAM       *network.IPAM
	Print      Fingerprint
}

// A VolumeSpec is one volume of an application.
type VolumeSpec struct {
	Name    string // the engine's
	Driver  string
	Options map[string]string
	Labels  map[string]string
}

// A Condition is what must hold of a service before another one may start.
type Condition string

const (
	Started   Condition = "service_started"
	Healthy   Condition = "service_healthy"
	Completed Condition = "service_completed_successfully"
)

// A Dependency makes a service wait for another of the same application.
type Dependency struct {
	Service   string
	Condition Condition
}

// A Strategy is how a changed service is replaced.
type Strategy string

const (
	DownloadThenKill   Strategy = "download-then-kill"
	KillThenDownload   Strategy = "kill-then-download"
	DeleteThenDownload Strategy = "delete-then-download"
	HandOver           Strategy = "hand-over"
)

// Labels by which the supervisor knows its own objects.
const (
	LabelSupervised  = "io.balena.supervised"
	LabelAppID       = "io.balena.app-id"
	LabelAppUUID     = "io.balena.app-uuid"
	LabelServiceID   = "io.balena.service-id"
	LabelServiceName = "io.balena.service-name"

	// LabelPrint holds the fingerprint of what was asked for. Comparing it,
	// not the engine's answer, keeps an engine that spells a default another
	// way from looking like a change for ever.
	LabelPrint = "io.minke.fingerprint"

	// LabelGrace is on a container whose composition asks for DefaultGrace in
	// words.
	LabelGrace = "io.minke.stop-grace-period"
)

// SupervisorNetwork is where services reach the supervisor's API.
const (
	SupervisorNetwork = "supervisor0"
	SupervisorSubnet  = "10.114.104.0/25"
	SupervisorGateway = "10.114.104.1"
)

// A Fingerprint is a short hash per field, "Env=3fa29c01 Labels=…": enough to
// see that two configurations differ, and in what.
type Fingerprint string

// fingerprint hashes the fields of some structs that say anything, so that a
// field the engine's API gains later does not change old fingerprints.
func fingerprint(parts ...any) Fingerprint {
	var out []string
	for _, part := range parts {
		raw, err := json.Marshal(part)
		var v any
		if err == nil {
			err = json.Unmarshal(raw, &v)
		}
		if err != nil {
			panic(fmt.Sprintf("fingerprint of %T: %v", part, err))
		}
		fields, _ := prune(v).(map[string]any)
		for name, v := range fields {
			raw, _ := json.Marshal(v) // came from JSON
			sum := sha256.Sum256(raw)
			out = append(out, name+"="+hex.EncodeToString(sum[:4]))
		}
	}
	slices.Sort(out)
	return Fingerprint(strings.Join(out, " "))
}

// prune takes out what is zero, and is nil if nothing is left. An object that
// was empty from the start is the member of a set, such as a port.
func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			return v
		}
		for k, x := range v {
			if v[k] = prune(x); v[k] == nil {
				delete(v, k)
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		for i, x := range v {
			if v[i] = prune(x); v[i] == nil {
				v[i] = x // its place counts
			}
		}
		if len(v) == 0 || !slices.ContainsFunc(v, func(x any) bool { return x != 0.0 }) {
			return nil
		}
	case string:
		if v == "" {
			return nil
		}
	case float64:
		if v == 0 {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	}
	return v
}

// Changed names the fields in which two fingerprints differ.
func (f Fingerprint) Changed(other Fingerprint) []string {
	a, b := strings.Fields(string(f)), strings.Fields(string(other))
	var out []string
	note := func(field string) {
		name, _, _ := strings.Cut(field, "=")
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	for _, x := range a {
		if !slices.Contains(b, x) {
			note(x)
		}
	}
	for _, x := range b {
		if !slices.Contains(a, x) {
			note(x)
		}
	}
	slices.Sort(out)
	return out
}
