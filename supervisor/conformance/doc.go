// Package conformance is the acceptance suite of the supervisor: what people,
// dashboards and programs written for balena's supervisor may rely on, seen from
// outside. It drives a real minked through HTTP and the Docker socket only, with
// a fleet server of our own (internal/testfleet), a registry that can be held up
// in the middle of a download, and logind and systemd on a D-Bus of its own.
//
// There are 80 checks, each with its number in one of the files beside:
//
//	{29, "a-lock-in-a-container-holds-a-restart", func(d *device) { … }},
//
// Those of a group follow each other on one device, and each leaves the device
// as the next one expects it: with fleetApp, settled. Groups run at the same time.
//
//	go test ./supervisor/conformance -run 'Minke/locks/29'
//	make test-conformance     the same with minked --engine beside a stock Docker
package conformance
