package supervisor

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/supervisor/client"
)

// minke's engine refuses an image that does not fit before its first byte. A
// Docker downloads and unpacks until its disk is full, which then is full for what
// runs as well, so the supervisor looks after the disk while it pulls.

// A disk is where a Docker on this host keeps images; "" if there is nothing to
// look after.
type disk string

// imageDisk is the engine's.
func (s *Supervisor) imageDisk(ctx context.Context) disk {
	res, err := s.cfg.Engine.Info(ctx, client.InfoOptions{})
	if err != nil || !filepath.IsAbs(s.cfg.EngineSocket) || !unpacksBlindly(res.Info) {
		return ""
	}
	d := disk(res.Info.DockerRootDir)
	if _, _, err := d.space(); err != nil { // another host's, or not for our eyes
		return ""
	}
	return d
}

// unpacksBlindly reports whether an engine is one that does not look whether an
// image fits, and keeps it where DockerRootDir says: containerd has a place of its own.
func unpacksBlindly(i system.Info) bool {
	return !slices.ContainsFunc(i.DriverStatus, func(kv [2]string) bool {
		return kv[0] == "driver-type" || kv[0] == "Backing Filesystem" && strings.HasPrefix(kv[1], "file store")
	})
}

func (d disk) space() (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(string(d), &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Blocks) * int64(st.Bsize), int64(st.Bavail) * int64(st.Bsize), nil
}

// check is unix.ENOSPC if the disk cannot take n bytes more and keep the reserve
// that minke's engine keeps: a fiftieth, or 64 MB of a big one.
func (d disk) check(n int64) error {
	if d == "" {
		return nil
	}
	total, free, err := d.space()
	reserve := min(total/50, 64<<20)
	if err != nil || free-reserve >= n {
		return err
	}
	return fmt.Errorf("%w: at least %d MB more are needed, and %d MB are free below %s, of which %d MB stay in reserve; remove images (docker image prune) or volumes",
		unix.ENOSPC, (n+1<<20-1)>>20, free>>20, d, reserve>>20)
}

// freeLocked is how many bytes there are for images; 0 if that cannot be told.
func (s *Supervisor) freeLocked() int64 {
	if s.images != "" {
		if _, free, err := s.images.space(); err == nil {
			return free
		}
	}
	return s.host.Free()
}

// A layer is how far one has come, in bytes of the archive that is downloaded.
type layer struct{ total, have, unpacked int64 }

// layers are an image's, by their short IDs.
type layers map[string]layer

// note reads a message of a pull.
func (l layers) note(m jsonstream.Message) {
	at := l[m.ID]
	switch {
	case m.ID == "":
		return
	case m.Status == "Downloading" && m.Progress != nil && m.Progress.Total > 0:
		at.total, at.have = m.Progress.Total, m.Progress.Current
	case m.Status == "Extracting" && m.Progress != nil && m.Progress.Total > 0:
		at.total, at.have, at.unpacked = m.Progress.Total, m.Progress.Total, m.Progress.Current
	case m.Status == "Download complete":
		at.total = max(at.total, 1)
		at.have = at.total
	case m.Status == "Pull complete" || m.Status == "Already exists":
		at.total = max(at.total, 1)
		at.have, at.unpacked = at.total, at.total
	case m.Status == "Pulling fs layer" || m.Status == "Waiting":
		at.total = max(at.total, 1)
	default:
		return
	}
	l[m.ID] = at
}

// percent is how much of them is here.
func (l layers) percent() int {
	var have, total int64
	for _, x := range l {
		have, total = have+x.have, total+x.total
	}
	if total == 0 {
		return 0
	}
	return int(have * 100 / total)
}

// needs is what a Docker will write at least before it has an image: the rest of
// a layer's archive, and its content beside it, which is not smaller. The archives of
// others may be gone by then.
func (l layers) needs() (n int64) {
	for _, x := range l {
		n = max(n, x.total-x.have+x.total-x.unpacked)
	}
	return n
}
