package engine

import (
	"bufio"
	"context"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	buildtypes "github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	imagetypes "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	volumetypes "github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/internal/cdi"
)

// Info is what docker info shows.
func (e *Engine) Info() (system.Info, error) {
	images, err := e.images.Images()
	if err != nil {
		return system.Info{}, err
	}
	host, _ := os.Hostname()
	set := e.settings.Load()
	info := system.Info{
		ID: e.id, Images: len(images), Driver: storageDriver, DriverStatus: [][2]string{{"Backing Filesystem", "file store, each content once"}},
		MemoryLimit: true, SwapLimit: swapAccounted(), CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true,
		OomKillDisable: !cgroupV2(), IPv4Forwarding: forwards(), Warnings: hostWarnings(), Debug: set.Debug,
		NFd: openFiles(), NGoroutines: runtime.NumGoroutine(), SystemTime: time.Now().Format(time.RFC3339Nano), NEventsListener: e.events.Listeners(),
		LoggingDriver: e.defaultLog().Type, CgroupDriver: "cgroupfs", CgroupVersion: "1",
		KernelVersion: kernelVersion(), OperatingSystem: osRelease("PRETTY_NAME"), OSVersion: osRelease("VERSION_ID"), OSType: "linux", Architecture: machine(),
		IndexServerAddress: "https://index.docker.io/v1/", RegistryConfig: e.registryConfig(), NCPU: runtime.NumCPU(), MemTotal: memTotal(),
		DockerRootDir: e.cfg.DataRoot, Name: host, Labels: append([]string{}, set.Labels...), ServerVersion: e.cfg.Version,
		Runtimes: e.runtimesInfo(), DefaultRuntime: e.cfg.DefaultRuntime, InitBinary: path.Base(initPath),
		Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}, LiveRestoreEnabled: true, SecurityOptions: []string{"name=seccomp,profile=builtin"},
		FirewallBackend: &system.FirewallInfo{Driver: "nftables"},
		Plugins:         system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "ipvlan", "macvlan", "null"}, Log: logDrivers},
	}
	if cgroupV2() {
		info.CgroupVersion = "2"
		info.SecurityOptions = append(info.SecurityOptions, "name=cgroupns")
	}
	info.CDISpecDirs = e.cdiDirs()
	for _, name := range cdi.Read(info.CDISpecDirs).Names() {
		info.DiscoveredDevices = append(info.DiscoveredDevices, system.DeviceInfo{Source: "cdi", ID: name})
	}
	if e.users != nil {
		info.SecurityOptions = append(info.SecurityOptions, "name=userns")
	}
	for _, c := range e.all() {
		info.Containers++
		switch r := c.snapshot(); {
		case r.Paused:
			info.ContainersPaused++
		case r.Running:
			info.ContainersRunning++
		default:
			info.ContainersStopped++
		}
	}
	return info, nil
}

func (e *Engine) registryConfig() *registry.ServiceConfig {
	set := e.settings.Load()
	c := &registry.ServiceConfig{Mirrors: set.Mirrors, IndexConfigs: map[string]*registry.IndexInfo{}}
	for _, name := range set.Insecure {
		c.IndexConfigs[name] = &registry.IndexInfo{Name: name, Mirrors: []string{}}
	}
	c.IndexConfigs["docker.io"] = &registry.IndexInfo{Name: "docker.io", Mirrors: set.Mirrors, Secure: true, Official: true}
	return c
}

// Version is what docker version shows, without the API's own numbers.
func (e *Engine) Version() system.VersionResponse {
	return system.VersionResponse{
		Platform: system.PlatformInfo{Name: "minke"}, Version: e.cfg.Version, Os: "linux", Arch: runtime.GOARCH,
		GitCommit: e.cfg.Commit, GoVersion: runtime.Version(), KernelVersion: kernelVersion(),
	}
}

// Usage is what docker system df shows.
type Usage struct {
	LayersSize int64
	Images     []imagetypes.Summary
	Containers []container.Summary
	Volumes    []volumetypes.Volume
	BuildCache []buildtypes.CacheRecord
}

// DiskUsage measures what is kept on disk.
func (e *Engine) DiskUsage(ctx context.Context) (u Usage, err error) {
	if u.LayersSize, err = e.images.Usage(); err != nil {
		return u, err
	}
	if u.Images, err = e.ImageList(ImageListOptions{SharedSize: true}); err != nil {
		return u, err
	}
	if u.Containers, err = e.ContainerList(ctx, ListOptions{All: true, Size: true}); err != nil {
		return u, err
	}
	if u.BuildCache, err = e.BuildCache(); err != nil {
		return u, err
	}
	list, err := e.VolumeList(nil)
	if err != nil {
		return u, err
	}
	users := e.volumeUsers()
	u.Volumes = list.Volumes
	for i := range u.Volumes {
		v := &u.Volumes[i]
		v.UsageData = &volumetypes.UsageData{RefCount: int64(len(users[v.Name])), Size: e.volumes.Size(v.Name)}
	}
	return u, nil
}

func readLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return line
}

func openFiles() int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(names)
}

func kernelVersion() string { return readLine("/proc/sys/kernel/osrelease") }

// machine is the hardware name that docker info shows: x86_64, aarch64.
func machine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOARCH
	}
	return unix.ByteSliceToString(u.Machine[:])
}

func memTotal() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return int64(si.Totalram) * int64(si.Unit)
}

// osRelease is one field of /etc/os-release.
func osRelease(field string) string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), field+"="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}
