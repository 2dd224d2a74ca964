package api

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/jsonstream"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/engine/build"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

func (s *Server) build(w http.ResponseWriter, r *http.Request) error {
	o, err := buildOptions(r)
	if err != nil {
		return err
	}
	body := io.Reader(r.Body)
	if remote := r.URL.Query().Get("remote"); remote != "" && remote != "client-session" {
		if build.IsGit(remote) {
			return errdef.Unsupported.Errorf("a git repository cannot be a build context here; clone it and build from the directory, or give the URL of a tar")
		}
		f, err := fetch(r, remote)
		if err != nil {
			return err
		}
		defer f.Close()
		body = f
	}
	if o.Secrets, err = buildSecrets(r); err != nil {
		return err
	}
	defer bothWays(w, r)()
	out := &messages{w: w}
	id, err := s.engine.ImageBuild(r.Context(), o, registryConfig(r), body, build.Output{
		Stdout: streamWriter{m: out}, Stderr: streamWriter{out, "\x1b[91m", "\x1b[0m"},
		ImageID: func(id oci.ImageID) {
			aux, _ := json.Marshal(map[string]string{"ID": string(id)})
			out.send(message{Message: jsonstream.Message{Aux: (*json.RawMessage)(&aux)}})
		},
	})
	if err != nil {
		return out.fail(err)
	}
	if o.Quiet {
		return out.stream(string(id) + "\n")
	}
	return nil
}

func buildOptions(r *http.Request) (o build.Options, err error) {
	q := r.URL.Query()
	if q.Get("version") == "2" {
		return o, errdef.Invalid.Errorf("BuildKit is not supported: set DOCKER_BUILDKIT=0 to build with the classic builder")
	}
	if boolParam(r, "squash") {
		return o, errdef.Invalid.Errorf("squash is not supported: content that layers share is on the disk once, so it would save nothing")
	}
	if outputs := q.Get("outputs"); outputs != "" && outputs != "null" && outputs != "[]" {
		return o, errdef.Invalid.Errorf("outputs are not supported: the result is an image; take files out of it with docker cp or docker save")
	}
	o = build.Options{
		Dockerfile: q.Get("dockerfile"), Target: q.Get("target"), NoCache: boolParam(r, "nocache"), Pull: boolParam(r, "pull"), Quiet: boolParam(r, "q"), Remove: boolOr(r, "rm", true),
		Host: build.HostConfig{
			NetworkMode: q.Get("networkmode"), CPUSetCPUs: q.Get("cpusetcpus"), CPUSetMems: q.Get("cpusetmems"), CgroupParent: q.Get("cgroupparent"),
			Isolation: q.Get("isolation"), Ulimits: q.Get("ulimits"),
		},
	}
	for _, t := range q["t"] {
		if t == "" {
			continue
		}
		ref, err := oci.ParseReference(t)
		if err != nil {
			return o, errdef.Invalid.Wrap(err)
		}
		if ref.Digest != "" {
			return o, errdef.Invalid.Errorf("build tag cannot contain a digest")
		}
		o.Tags = append(o.Tags, ref)
	}
	if p := q.Get("platform"); p != "" {
		if o.Platform, err = oci.ParsePlatform(p); err != nil {
			return o, errdef.Invalid.Wrap(err)
		}
	}
	o.Host.SecurityOpt = q["securityopt"]
	for _, list := range q["extrahosts"] {
		o.Host.ExtraHosts = append(o.Host.ExtraHosts, strings.Split(list, ",")...)
	}
	for name, field := range map[string]*int64{
		"memory": &o.Host.Memory, "memswap": &o.Host.MemorySwap, "cpushares": &o.Host.CPUShares, "cpuquota": &o.Host.CPUQuota,
		"cpuperiod": &o.Host.CPUPeriod, "shmsize": &o.Host.ShmSize,
	} {
		if text := q.Get(name); text != "" {
			if *field, err = strconv.ParseInt(text, 10, 64); err != nil {
				return o, errdef.Invalid.Errorf("invalid value %q for %s: want a number", text, name)
			}
		}
	}
	for name, field := range map[string]any{
		"buildargs": &o.Args, "labels": &o.Labels, "cachefrom": &o.CacheFrom, "volumes": &o.Host.Volumes,
	} {
		if text := q.Get(name); text != "" {
			if err := json.Unmarshal([]byte(text), field); err != nil {
				return o, errdef.Invalid.Errorf("invalid %s: %w", name, err)
			}
		}
	}
	return o, nil
}

// buildPrune removes the directories of cache mounts. What instructions made
// is images, which POST /images/prune removes.
func (s *Server) buildPrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err != nil {
		return err
	}
	o := engine.BuildPruneOptions{Filters: f}
	for _, name := range []string{"keep-storage", "reserved-space", "max-used-space"} {
		if text := r.URL.Query().Get(name); text != "" {
			if o.Keep, err = strconv.ParseInt(text, 10, 64); err != nil {
				return errdef.Invalid.Errorf("%s is in bytes and expects an integer, got %v", name, text)
			}
		}
	}
	report, err := s.engine.BuildPrune(r.Context(), o)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, report)
}

// secretsHeader carries what RUN --mount=type=secret shows: base64 of a JSON
// object of base64 values by ID. It is ours: BuildKit's clients use a session.
const secretsHeader = "X-Minke-Build-Secrets"

func buildSecrets(r *http.Request) (secrets map[string][]byte, err error) {
	text := r.Header.Get(secretsHeader)
	if text == "" {
		return nil, nil
	}
	dec := base64.NewDecoder(base64.URLEncoding, strings.NewReader(text))
	if err := json.NewDecoder(dec).Decode(&secrets); err != nil {
		// Not the error itself, which could quote a secret.
		return nil, errdef.Invalid.Errorf("%s: want base64 of a JSON object with base64 values", secretsHeader)
	}
	return secrets, nil
}
