// Package model is what the supervisor is asked to run, as values.
//
//	Target   the device's target state, decoded from either wire form
//	Device   what the device knows of itself and injects into containers
//	AppSpec  one application of a target, turned into engine objects
//	Spec     one service of it: everything the engine is asked for
//
// ParseLocal and ParseV3 accept foreign bytes and say which field is wrong.
// Compose turns an application into specs; equal applications on equal devices
// give equal specs, whatever the order of keys, so that comparing fingerprints
// decides whether anything must be touched.
//
// The package does no input or output, reads no clock and keeps no state. It
// does not know what is running; see package plan.
package model

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/minke-os/minke/supervisor/contract"
)

// An AppID is the number a fleet server gives an application; local mode
// makes one up.
type AppID int

func (id AppID) String() string { return strconv.Itoa(int(id)) }

// A Target is what the device should be.
type Target struct {
	Name   string            // the device's
	Config map[string]string // without the BALENA_ or RESIN_ prefix
	Apps   []App             // by ID
	// Refused are releases that this device cannot run, by the UUID of their
	// application. Apps has what it keeps instead; see Meet.
	Refused map[string]Refusal
	LeftOut []string // why optional services are not in Apps
}

// An App is one application in one release.
type App struct {
	ID        AppID
	UUID      string
	Name      string
	Commit    string
	ReleaseID int
	IsHost    bool
	Frozen    bool                      // whatever the device has of it stays as it is
	Absent    []string                  // optional services that this device cannot run
	Services  []Service                 // by name
	Networks  map[string]map[string]any // compose bodies
	Volumes   map[string]map[string]any
}

// A Service is one service of a release, its composition as it came.
type Service struct {
	Name        string
	ID          int
	ImageID     int // the release's number for the image, not the engine's ID
	Image       string
	Running     bool
	Environment map[string]string
	Labels      map[string]string
	Composition map[string]any // keys in snake_case
	Contract    contract.Contract
}

// App finds an application by ID.
func (t Target) App(id AppID) (App, bool) {
	for _, a := range t.Apps {
		if a.ID == id {
			return a, true
		}
	}
	return App{}, false
}

// Service finds a service by name.
func (a App) Service(name string) (Service, bool) {
	for _, s := range a.Services {
		if s.Name == name {
			return s, true
		}
	}
	return Service{}, false
}

// NetworkName is the engine's name of an application's network.
func NetworkName(appUUID, name string) string { return appUUID + "_" + name }

// VolumeName is the engine's name of an application's volume.
func VolumeName(id AppID, name string) string { return id.String() + "_" + name }

// ContainerName holds the numbers that exist nowhere else in the engine.
func ContainerName(service string, imageID, releaseID int, commit string) string {
	return fmt.Sprintf("%s_%d_%d_%s", service, imageID, releaseID, commit)
}

// OldPrefix marks the outgoing container of a hand-over.
const OldPrefix = "old_"

var containerName = regexp.MustCompile(`_(\d+)_(\d+)(?:_(.*?))?$`)

// ParseContainerName reads the numbers of ContainerName back. Older
// supervisors leave the commit out.
func ParseContainerName(name string) (imageID, releaseID int, commit string, ok bool) {
	m := containerName.FindStringSubmatch(strings.TrimPrefix(name, "/"))
	if m == nil {
		return 0, 0, "", false
	}
	imageID, err1 := strconv.Atoi(m[1])
	releaseID, err2 := strconv.Atoi(m[2])
	return imageID, releaseID, m[3], err1 == nil && err2 == nil
}
