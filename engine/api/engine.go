package api

import (
	"context"
	"io"

	buildtypes "github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/engine/archive"
	"github.com/minke-os/minke/engine/build"
	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/oci"
)

// Engine is what the handlers need.
type Engine interface {
	containers
	execs
	images
	registries
	networks
	volumes

	Info() (system.Info, error)
	Version() system.VersionResponse
	DiskUsage(context.Context) (engine.Usage, error)
	StoreCheck(ctx context.Context, repair bool) (store.Report, store.Repaired, error)
	Events() (past []events.Message, next <-chan events.Message, stop func())
}

type containers interface {
	ContainerCreate(ctx context.Context, name, platform string, req container.CreateRequest) (container.CreateResponse, error)
	ContainerStart(ctx context.Context, name string) error
	ContainerStop(ctx context.Context, name string, o engine.StopOptions) error
	ContainerRestart(ctx context.Context, name string, o engine.StopOptions) error
	ContainerKill(ctx context.Context, name, signal string) error
	ContainerPause(ctx context.Context, name string) error
	ContainerUnpause(ctx context.Context, name string) error
	ContainerRename(ctx context.Context, name, newName string) error
	ContainerRemove(ctx context.Context, name string, o engine.RemoveOptions) error
	LinkRemove(name string) error
	ContainerUpdate(ctx context.Context, name string, u container.UpdateConfig) (container.UpdateResponse, error)
	ContainerWait(name string, c container.WaitCondition) (func(context.Context) (exitCode int, err error), error)
	ContainerResize(ctx context.Context, name string, height, width uint16) error
	ContainerInspect(name string, size bool) (container.InspectResponse, error)
	ContainerList(ctx context.Context, o engine.ListOptions) ([]container.Summary, error)
	ContainerLogs(name string, o engine.LogOptions) (engine.Logs, error)
	ContainerTop(name, psArgs string) (container.TopResponse, error)
	ContainerStats(ctx context.Context, name string, o engine.StatsOptions, emit func(container.StatsResponse) error) error
	ContainerExport(name string) (func(context.Context, io.Writer) error, error)
	ContainerChanges(name string) ([]container.FilesystemChange, error)
	ContainerCommit(ctx context.Context, name string, o engine.CommitOptions) (oci.ImageID, error)
	ContainersPrune(ctx context.Context, f engine.Filters) (container.PruneReport, error)
	Attach(ctx context.Context, name string, o engine.AttachOptions) (*engine.Attachment, error)
	StatPath(name, path string) (container.PathStat, error)
	CopyFrom(name, path string) (stat container.PathStat, write func(io.Writer) error, closer func(), err error)
	CopyTo(name, dir string, tar io.Reader, o engine.CopyToOptions) error
}

type execs interface {
	ExecCreate(ctx context.Context, name string, req container.ExecCreateRequest) (string, error)
	ExecStart(ctx context.Context, id string, req container.ExecStartRequest) (*engine.Attachment, error)
	ExecResize(ctx context.Context, id string, height, width uint16) error
	ExecInspect(id string) (container.ExecInspectResponse, error)
}

type images interface {
	ImageInspect(name string, p oci.Platform) (engine.ImageDescription, error)
	ImageHistory(name string, p oci.Platform) ([]image.HistoryResponseItem, error)
	ImageList(o engine.ImageListOptions) ([]image.Summary, error)
	ImageTag(name, repo, tag string) error
	ImageRemove(ctx context.Context, name string, o store.RemoveOptions) ([]image.DeleteResponse, error)
	ImageLoad(ctx context.Context, r io.Reader, p oci.Platform, progress func(archive.Progress)) error
	ImageSave(ctx context.Context, names []string, p oci.Platform) (func(io.Writer) error, error)
	ImagePull(ctx context.Context, name, tag string, o engine.PullOptions) error
	ImagePush(ctx context.Context, name, tag string, o engine.PushOptions) error
	ImageDelta(ctx context.Context, base, target, tag string, progress func(registry.Progress)) (oci.ImageID, error)
	DeltaCreate(ctx context.Context, base, target string, o engine.DeltaOptions) (*store.ImageDelta, error)
	DeltaInspect(ctx context.Context, d *store.ImageDelta) (store.DeltaReport, error)
	DeltaInspectFile(ctx context.Context, r io.Reader) (store.DeltaReport, error)
	DeltaInspectAll(ctx context.Context, name string, c registry.Credentials) ([]store.DeltaReport, error)
	DeltaPush(ctx context.Context, d *store.ImageDelta, name string, o engine.PushOptions) error
	DeltaSave(d *store.ImageDelta, w io.Writer) error
	ImageImport(ctx context.Context, r io.Reader, o engine.ImportOptions) (oci.ImageID, error)
	ImageBuild(ctx context.Context, o build.Options, auths engine.RegistryAuths, contextTar io.Reader, out build.Output) (oci.ImageID, error)
	BuildPrune(ctx context.Context, o engine.BuildPruneOptions) (buildtypes.CachePruneReport, error)
	ImagePrune(ctx context.Context, f engine.Filters) (deleted []image.DeleteResponse, reclaimed int64, err error)
}

type registries interface {
	RegistryLogin(ctx context.Context, server string, c registry.Credentials) (identity string, err error)
	DistributionInspect(ctx context.Context, name string, c registry.Credentials) (registry.Description, error)
}

type networks interface {
	NetworkCreate(req network.CreateRequest) (network.CreateResponse, error)
	NetworkInspect(name string) (network.Inspect, error)
	NetworkList(f engine.Filters) ([]network.Network, error)
	NetworkRemove(ctx context.Context, name string) error
	NetworkPrune(ctx context.Context, f engine.Filters) (network.PruneReport, error)
	NetworkConnect(ctx context.Context, name string, req network.ConnectRequest) error
	NetworkDisconnect(ctx context.Context, name string, req network.DisconnectRequest) error
}

type volumes interface {
	VolumeCreate(req volume.CreateRequest) (volume.Volume, error)
	VolumeInspect(name string) (volume.Volume, error)
	VolumeList(f engine.Filters) (volume.ListResponse, error)
	VolumeRemove(name string, force bool) error
	VolumePrune(f engine.Filters) (volume.PruneReport, error)
}
