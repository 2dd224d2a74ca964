package engine

import (
	"context"
	"time"

	buildtypes "github.com/moby/moby/api/types/build"

	"github.com/minke-os/minke/engine/internal/buildcache"
	"github.com/minke-os/minke/internal/errdef"
)

// cacheMountType is what BuildKit calls such a record.
const cacheMountType = "exec.cachemount"

// BuildCache lists the directories of RUN --mount=type=cache, those that were
// not used for the longest first. What instructions made is images.
func (e *Engine) BuildCache() ([]buildtypes.CacheRecord, error) {
	all, err := e.buildCache.List()
	if err != nil {
		return nil, err
	}
	out := []buildtypes.CacheRecord{}
	for _, c := range all {
		out = append(out, cacheRecord(c))
	}
	return out, nil
}

func cacheRecord(c buildcache.Entry) buildtypes.CacheRecord {
	return buildtypes.CacheRecord{
		ID: c.Key, Type: cacheMountType, Description: "cached mount " + c.ID, InUse: c.InUse, Size: c.Size,
		CreatedAt: c.Created, LastUsedAt: &c.LastUsed, UsageCount: c.Uses,
	}
}

// BuildPruneOptions are those of docker builder prune.
type BuildPruneOptions struct {
	Filters Filters
	Keep    int64 // bytes that may stay, of what was used last
}

// BuildPrune removes the cache directories that no build uses.
func (e *Engine) BuildPrune(ctx context.Context, o BuildPruneOptions) (buildtypes.CachePruneReport, error) {
	out := buildtypes.CachePruneReport{CachesDeleted: []string{}}
	f := o.Filters
	if err := f.check("until", "id", "type", "description", "inuse", "shared", "private", "parent", "unused-for"); err != nil {
		return out, err
	}
	wanted, err := pruneCache(f)
	if err != nil {
		return out, err
	}
	all, err := e.BuildCache()
	if err != nil {
		return out, err
	}
	var total int64
	for _, c := range all {
		total += c.Size
	}
	for _, c := range all {
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		if c.InUse || !wanted(c) || o.Keep > 0 && total <= o.Keep {
			continue
		}
		err := e.buildCache.Remove(c.ID)
		if errdef.Is(err, errdef.Busy) {
			continue // a build was faster
		}
		if err != nil {
			return out, err
		}
		total -= c.Size
		out.CachesDeleted = append(out.CachesDeleted, c.ID)
		out.SpaceReclaimed += uint64(c.Size)
	}
	return out, nil
}

func pruneCache(f Filters) (func(buildtypes.CacheRecord) bool, error) {
	until, err := f.until()
	if err == nil && len(f["unused-for"]) > 0 {
		until, err = ParseTime(f["unused-for"][0], time.Now())
	}
	if err != nil {
		return nil, err
	}
	private, askedPrivate, err := f.is("private")
	if err != nil {
		return nil, err
	}
	shared, askedShared, err := f.is("shared")
	if err != nil {
		return nil, err
	}
	return func(c buildtypes.CacheRecord) bool {
		switch {
		case !until.IsZero() && c.LastUsedAt.After(until), askedPrivate && !private, askedShared && shared, len(f["parent"]) > 0:
			return false
		}
		return f.prefix("id", c.ID) && f.any("type", c.Type) && f.match("description", c.Description)
	}, nil
}
