package volume

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/minke-os/minke/internal/errdef"
)

// A keeper looks after one volume that is mounted, from its first user to its
// last. It is a goroutine, because a server that is away can hold a mount for
// minutes; nobody else waits for it longer than patience.
type keeper struct {
	name   string
	source source
	path   string

	poke  chan struct{} // capacity 1: look again
	after chan struct{} // closed when the keeper before this one is gone
	done  chan struct{} // closed when this one is

	// The rest is guarded by Store.live.
	users   map[string]bool
	leaving bool          // its last user is gone, and so will it be
	tried   chan struct{} // closed after the first attempt
	mounted bool
	device  string // what is mounted
	problem error  // why it is not
	since   time.Time
}

// patience is how long the start of a container waits for a volume that may
// come later. A share nearby is mounted in a fraction of it.
const patience = 2 * time.Second

// The time between attempts to mount doubles from the first to the second.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// Use makes sure that the volume's data is at its Path, for user, until
// Release. A share or a stick that is not there does not fail: present is
// false, the attempts go on, and Options.Changed tells when it comes or goes.
func (s *Store) Use(ctx context.Context, name, user string) (present bool, err error) {
	v, err := s.Get(name)
	if err != nil {
		return false, err
	}
	src, err := parse(v)
	if err != nil || !src.mounted() {
		return true, err
	}
	k, err := s.keep(name, src, user)
	if err != nil {
		return false, err
	}
	var soon <-chan time.Time
	if src.late() {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		soon = timer.C
	}
	select {
	case <-k.tried:
	case <-soon:
	case <-ctx.Done():
		s.Release(name, user)
		return false, ctx.Err()
	}
	s.live.Lock()
	present, err = k.mounted, k.problem
	s.live.Unlock()
	if present || src.late() && !errdef.Is(err, errdef.Unsupported) {
		return present, nil
	}
	s.Release(name, user)
	return false, fmt.Errorf("volume %s: %w", name, err)
}

// Resume is Use for a container that ran before this process did. It does not
// wait: what the container uses is mounted, or comes when it can.
func (s *Store) Resume(name, user string) error {
	v, err := s.Get(name)
	if err != nil {
		return err
	}
	src, err := parse(v)
	if err != nil || !src.mounted() {
		return err
	}
	_, err = s.keep(name, src, user)
	return err
}

// keep finds or starts the volume's keeper.
func (s *Store) keep(name string, src source, user string) (*keeper, error) {
	s.live.Lock()
	defer s.live.Unlock()
	if s.closing() {
		return nil, errdef.Unavailable.Errorf("the engine is shutting down")
	}
	k := s.keepers[name]
	if k == nil || k.leaving {
		next := &keeper{
			name: name, source: src, path: s.Path(name), since: time.Now(), users: map[string]bool{},
			poke: make(chan struct{}, 1), done: make(chan struct{}), tried: make(chan struct{}),
		}
		if k != nil {
			next.after = k.done
		}
		k = next
		s.keepers[name] = k
		s.wg.Go(func() { s.run(k) })
	}
	k.users[user] = true
	return k, nil
}

// Release gives up what Use asked for. After the last user the volume is
// unmounted; Release does not wait for that.
func (s *Store) Release(name, user string) {
	s.live.Lock()
	defer s.live.Unlock()
	if k := s.keepers[name]; k != nil && k.users[user] {
		delete(k.users, user)
		k.wake()
	}
}

func (k *keeper) wake() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

// DisksChanged lets volumes that wait for a disk look again.
func (s *Store) DisksChanged() {
	s.live.Lock()
	defer s.live.Unlock()
	for _, k := range s.keepers {
		if k.source.removable() {
			k.wake()
		}
	}
}

// Close ends all keepers and leaves their mounts, which running containers
// use. What waits for the kernel is not waited for.
func (s *Store) Close() {
	s.live.Lock()
	if !s.closing() {
		close(s.closed)
	}
	s.live.Unlock()
	s.wg.Wait()
}

func (s *Store) closing() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// run is the keeper: it mounts, watches, and unmounts, until nobody uses the
// volume any more.
func (s *Store) run(k *keeper) {
	defer s.forget(k)
	if k.after != nil {
		select {
		case <-k.after:
		case <-s.closed:
		}
	}
	retry := firstRetry
	for s.used(k) {
		gone, err := s.attempt(k)
		if s.closing() {
			return
		}
		s.settle(k, err)
		if err != nil {
			s.dropStale(k)
			s.pause(k, &retry)
			continue
		}
		retry = firstRetry
		s.changed(k, true)
		for s.used(k) && !s.wait(k, gone, nil) {
		}
		if s.closing() && s.needed(k) {
			return // by containers, which go on
		}
		s.settle(k, errdef.Unavailable.Errorf("waiting for %s", k.source.disk))
		s.changed(k, false)
		if err := unmount(k.path); err != nil {
			s.log.Error("volume is not unmounted", "volume", k.name, "err", err)
		}
	}
}

func (s *Store) forget(k *keeper) {
	s.live.Lock()
	defer s.live.Unlock()
	if s.keepers[k.name] == k {
		delete(s.keepers, k.name)
	}
	close(k.done)
}

// used reports whether the keeper should go on. Once it says no, the next user
// gets another keeper.
func (s *Store) used(k *keeper) bool {
	s.live.Lock()
	defer s.live.Unlock()
	k.leaving = k.leaving || len(k.users) == 0
	return !k.leaving && !s.closing()
}

func (s *Store) needed(k *keeper) bool {
	s.live.Lock()
	defer s.live.Unlock()
	return len(k.users) > 0
}

// wait returns true when the disk is gone, and false when there is something
// to look at.
func (s *Store) wait(k *keeper, gone <-chan struct{}, timer <-chan time.Time) bool {
	select {
	case <-gone:
		return true
	case <-k.poke:
	case <-timer:
	case <-s.closed:
	}
	return false
}

// pause waits before the next attempt: for a disk to come, or for a while.
func (s *Store) pause(k *keeper, retry *time.Duration) {
	timer := time.NewTimer(*retry)
	defer timer.Stop()
	*retry = min(2**retry, lastRetry)
	s.wait(k, nil, timer.C)
}

// settle notes how an attempt ended, and says so in the log when it is news.
func (s *Store) settle(k *keeper, err error) {
	s.live.Lock()
	defer s.live.Unlock()
	news := k.mounted != (err == nil) || fmt.Sprint(k.problem) != fmt.Sprint(err)
	if k.mounted != (err == nil) {
		k.since = time.Now()
	}
	k.mounted, k.problem = err == nil, err
	select {
	case <-k.tried:
	default:
		close(k.tried)
	}
	switch {
	case !news || len(k.users) == 0:
	case err != nil:
		s.log.Warn("volume is not there", "volume", k.name, "err", err)
	default:
		s.log.Info("volume is there", "volume", k.name, "device", k.device)
	}
}

// attempt mounts the volume. gone is closed when a disk is pulled out; it is
// nil for what cannot be. When the store is closed it returns early.
func (s *Store) attempt(k *keeper) (gone <-chan struct{}, err error) {
	type outcome struct {
		gone <-chan struct{}
		err  error
	}
	result := make(chan outcome, 1)
	go func() {
		gone, err := s.mountNow(k)
		result <- outcome{gone, err}
	}()
	select {
	case o := <-result:
		return o.gone, o.err
	case <-s.closed:
		return nil, nil
	}
}

func (s *Store) mountNow(k *keeper) (gone <-chan struct{}, err error) {
	src, dirty := k.source, false
	if src.removable() {
		part, err := s.plugged(src)
		if err != nil {
			return nil, err
		}
		src.device, src.kind, gone, dirty = part.Device, part.Type, part.Gone, part.Dirty
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), lastRetry)
		defer cancel()
		if src, err = src.resolved(ctx); err != nil {
			return nil, err
		}
	}
	s.live.Lock()
	k.device = src.device
	s.live.Unlock()
	if old, err := mountedAt(k.path); err != nil {
		return nil, err
	} else if old != nil {
		if !src.removable() || sameDevice(old, src.device) {
			return gone, nil // from before a restart
		}
		if err := unmount(k.path); err != nil {
			return nil, err
		}
	}
	if dirty {
		s.log.Warn("disk was pulled out without a word the last time; repairing", "device", src.device, "type", src.kind)
		if err := repair(src.kind, src.device); err != nil {
			s.log.Error("repair of disk", "device", src.device, "err", err)
		}
	}
	return gone, s.mount(src, k.path)
}

// plugged finds the partition, with the type that the volume asks for.
func (s *Store) plugged(src source) (Partition, error) {
	if s.disks == nil {
		return Partition{}, errdef.Unsupported.Errorf("there is no watch on disks here")
	}
	part, ok := s.disks(src.disk)
	if !ok {
		return part, errdef.Unavailable.Errorf("waiting for %s", src.disk)
	}
	part.Type = cmp.Or(src.kind, part.Type)
	if part.Type == "" {
		return part, errdef.Unavailable.Errorf("%s has no file system that is known; say which with -o type=", part.Device)
	}
	return part, nil
}

// A Partition is one that is plugged in.
type Partition struct {
	Device string // path of its node
	Type   string // file system
	Dirty  bool   // not unmounted the last time
	Gone   <-chan struct{}
}

// mountedAt is the mount at path, nil without one.
func mountedAt(path string) (*mountinfo.Info, error) {
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[len(all)-1], nil
}

// Reconcile unmounts what nobody uses: what a crash left. Call it when all
// running containers have said what they use.
func (s *Store) Reconcile() error {
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.root))
	if err != nil {
		return err
	}
	s.live.Lock()
	used := map[string]bool{}
	for _, k := range s.keepers {
		used[k.path] = true
	}
	s.live.Unlock()
	for _, m := range all {
		if used[m.Mountpoint] || m.Mountpoint == s.root {
			continue
		}
		s.log.Warn("unmounting a volume that nobody uses", "path", m.Mountpoint)
		if err := unmount(m.Mountpoint); err != nil {
			return err
		}
	}
	return nil
}

// Status is what inspect says of a volume that is mounted: its state, the
// device and the problem. It is nil for a plain directory.
func (s *Store) Status(v Volume) map[string]any {
	src, err := parse(v)
	if err != nil || !src.mounted() {
		return nil
	}
	s.live.Lock()
	defer s.live.Unlock()
	k := s.keepers[v.Name]
	if k == nil {
		return map[string]any{"state": "unused"}
	}
	out := map[string]any{"state": "waiting", "since": k.since.UTC().Format(time.RFC3339)}
	if k.mounted {
		out["state"], out["device"] = "mounted", k.device
	} else if k.problem != nil {
		out["error"] = k.problem.Error()
	}
	return out
}

// Late reports whether the volume may come and go while containers run, as
// shares and sticks do; and whether it is there now.
func (s *Store) Late(name string) (late, present bool) {
	v, err := s.Get(name)
	if err != nil {
		return false, false
	}
	src, err := parse(v)
	if err != nil || !src.late() {
		return false, err == nil
	}
	s.live.Lock()
	defer s.live.Unlock()
	k := s.keepers[name]
	return true, k != nil && k.mounted
}

// changed tells of a volume that has come or gone, to containers that can see
// the difference.
func (s *Store) changed(k *keeper, present bool) {
	if s.onChange != nil && k.source.late() {
		s.onChange(k.name, present)
	}
}

// dropStale takes away a disk that was pulled out while nobody watched.
func (s *Store) dropStale(k *keeper) {
	if !k.source.removable() {
		return
	}
	if old, err := mountedAt(k.path); err != nil || old == nil {
		return
	}
	s.changed(k, false)
	if err := unmount(k.path); err != nil {
		s.log.Error("volume is not unmounted", "volume", k.name, "err", err)
	}
}

// sameDevice reports whether a mount is of the block device at path.
func sameDevice(m *mountinfo.Info, path string) bool {
	major, minor, err := deviceNumber(path)
	return err == nil && m.Major == int(major) && m.Minor == int(minor)
}
