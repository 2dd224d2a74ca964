package compose

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// A normalizer turns compose-go's form into the supervisor's.
type normalizer struct {
	project *Project
	dir     string
	files   []string
	errs    []error
}

func (n *normalizer) fail(path, format string, args ...any) {
	where := locate(n.files, path)
	n.errs = append(n.errs, fmt.Errorf("%s%s: %s", where, path, fmt.Sprintf(format, args...)))
}

func (n *normalizer) notice(path, why string) {
	n.project.Notices = append(n.project.Notices, fmt.Sprintf("%s%s has no effect: %s", locate(n.files, path), path, why))
}

func (n *normalizer) run(doc document) {
	for _, name := range slices.Sorted(maps.Keys(doc.Networks)) {
		n.object("networks", name, doc.Networks[name], n.project.Networks)
	}
	for _, name := range slices.Sorted(maps.Keys(doc.Volumes)) {
		n.object("volumes", name, doc.Volumes[name], n.project.Volumes)
	}
	for _, name := range slices.Sorted(maps.Keys(doc.Services)) {
		n.service(name, doc.Services[name])
	}
	if _, ok := n.project.Networks["default"]; !ok {
		n.project.Networks["default"] = map[string]any{"ipam": map[string]any{}}
	}
}

// object takes a network or volume over.
func (n *normalizer) object(section, name string, body map[string]any, into map[string]map[string]any) {
	path := section + "." + name
	if body["external"] == true {
		n.fail(path+".external", "a device has no %s but those of its application", section)
		return
	}
	if full, _ := body["name"].(string); full != n.project.Name+"_"+name && full != "" {
		n.notice(path+".name", "the supervisor names it")
	}
	if d, _ := body["driver"].(string); section == "networks" && d != "" && d != "bridge" {
		n.fail(path+".driver", "only bridge networks are supported, not %q", d)
	}
	out := maps.Clone(body)
	delete(out, "name")
	delete(out, "external")
	into[name] = out
}

// silent are keys that compose-go has already worked into others, or that only
// document something.
var silent = []string{"build", "image", "environment", "labels", "env_file", "label_file", "expose", "extends", "profiles", "scale", "attach", "annotations"}

// pointless are keys without effect on a device, and why.
var pointless = map[string]string{
	"container_name": "containers are named after service and release",
	"links":          "services reach each other by name",
	"external_links": "services reach each other by name",
	"logging":        "the device keeps logs in its own way",
	"pull_policy":    "an image is downloaded when it is missing",
	"platform":       "the device runs its own platform",
	"stdin_open":     "nobody sits at a device",
	"deploy":         "there is one container for each service; limits are mem_limit, cpus and pids_limit",
	"develop":        "files are not watched",
	"isolation":      "Linux has one kind",
	"blkio_config":   "not supported", "cpu_count": "not supported", "cpu_percent": "not supported",
	"cpu_period": "use cpus", "cpu_rt_period": "not supported", "cpu_rt_runtime": "not supported",
	"memswap_limit": "not supported", "mem_swappiness": "not supported", "oom_kill_disable": "not supported",
	"storage_opt": "not supported", "device_cgroup_rules": "not supported", "uts": "not supported", "cgroup": "not supported",
	"use_api_socket": "not supported", "volumes_from": "use a named volume in both services",
	"credential_spec": "not supported", "post_start": "not supported", "pre_stop": "not supported",
	"runtime": "not supported", "gpus": "use the label io.balena.features.gpu",
}

// refused are keys without which a service would be another one.
var refused = map[string]string{
	"secrets":  "secrets are not supported; use environment",
	"configs":  "configs are not supported; copy the file into the image",
	"provider": "providers are not supported",
	"models":   "models are not supported",
}

func (n *normalizer) service(name string, body map[string]any) {
	path := "services." + name
	s := Service{
		Name:        name,
		Environment: texts(body["environment"]),
		Labels:      texts(body["labels"]),
		Composition: map[string]any{},
	}
	s.Image, _ = body["image"].(string)
	if b, ok := body["build"].(map[string]any); ok {
		s.Build = n.build(path+".build", b)
	}
	if s.Image == "" && s.Build == nil {
		n.fail(path, "needs image or build")
	}
	for _, key := range slices.Sorted(maps.Keys(body)) {
		n.field(&s, path, key, body[key])
	}
	n.project.Services = append(n.project.Services, s)
}

func (n *normalizer) field(s *Service, path, key string, v any) {
	at := path + "." + key
	switch {
	case v == nil || slices.Contains(silent, key):
	case pointless[key] != "":
		n.notice(at, pointless[key])
	case refused[key] != "":
		n.fail(at, "%s", refused[key])
	case key == "ports":
		s.Composition[key] = n.ports(at, v)
	case key == "volumes":
		n.volumes(s, at, v)
	case key == "devices":
		s.Composition[key] = devices(v)
	case key == "depends_on":
		s.Composition[key] = dependsOn(v)
	case key == "network_mode":
		n.networkMode(s, at, v)
	default:
		s.Composition[key] = v
	}
}

func (n *normalizer) networkMode(s *Service, at string, v any) {
	mode, _ := v.(string)
	if strings.HasPrefix(mode, "container:") {
		n.fail(at, "%q names a container that may be replaced at any time; use service:<name>", mode)
		return
	}
	s.Composition["network_mode"] = mode
}

func (n *normalizer) build(path string, b map[string]any) *Build {
	out := &Build{Args: texts(b["args"]), Labels: texts(b["labels"]), CacheFrom: list(b["cache_from"]), ExtraHosts: list(b["extra_hosts"])}
	out.Context, _ = b["context"].(string)
	out.Dockerfile, _ = b["dockerfile"].(string)
	out.Target, _ = b["target"].(string)
	if !filepath.IsAbs(out.Context) {
		if strings.Contains(out.Context, "://") {
			n.fail(path+".context", "%q is not a directory; clone it and build from there", out.Context)
		}
		out.Context = filepath.Join(n.dir, out.Context)
	}
	for _, key := range []string{"dockerfile_inline", "secrets", "ssh", "additional_contexts", "privileged", "entitlements"} {
		if b[key] != nil {
			n.fail(path+"."+key, "not supported by the classic builder")
		}
	}
	return out
}

// texts is an object of scalars; a variable without a value is not set.
func texts(v any) map[string]string {
	out := map[string]string{}
	m, _ := v.(map[string]any)
	for k, v := range m {
		if v != nil {
			out[k] = fmt.Sprint(v)
		}
	}
	return out
}

func list(v any) []string {
	var out []string
	items, _ := v.([]any)
	for _, x := range items {
		out = append(out, fmt.Sprint(x))
	}
	return out
}

func objects(v any) []map[string]any {
	var out []map[string]any
	items, _ := v.([]any)
	for _, x := range items {
		m, _ := x.(map[string]any)
		out = append(out, m)
	}
	return out
}

func field(m map[string]any, key string) string {
	if m[key] == nil {
		return ""
	}
	return fmt.Sprint(m[key])
}

func (n *normalizer) ports(at string, v any) []any {
	var out []any
	for _, p := range objects(v) {
		s := field(p, "target")
		if published := field(p, "published"); published != "" {
			s = published + ":" + s
			if strings.Contains(published, "-") {
				n.fail(at, "%q: a range on the host for one port of the container cannot be predicted", s)
			}
		}
		if ip := field(p, "host_ip"); ip != "" {
			if field(p, "published") == "" {
				s = field(p, "target") + ":" + s
			}
			if strings.Contains(ip, ":") {
				ip = "[" + ip + "]"
			}
			s = ip + ":" + s
		}
		if proto := field(p, "protocol"); proto != "" && proto != "tcp" {
			s += "/" + proto
		}
		out = append(out, s)
	}
	return out
}

func devices(v any) []any {
	var out []any
	for _, d := range objects(v) {
		s := field(d, "source") + ":" + field(d, "target")
		if perm := field(d, "permissions"); perm != "" && perm != "rwm" {
			s += ":" + perm
		}
		out = append(out, s)
	}
	return out
}

// dependsOn is the plain list if no condition is asked for: supervisors other
// than ours know nothing else.
func dependsOn(v any) any {
	m, _ := v.(map[string]any)
	names, conditions, plain := []any{}, map[string]any{}, true
	for _, name := range slices.Sorted(maps.Keys(m)) {
		body, _ := m[name].(map[string]any)
		condition := field(body, "condition")
		names = append(names, name)
		conditions[name] = map[string]any{"condition": condition}
		plain = plain && condition == "service_started"
	}
	if plain {
		return names
	}
	return conditions
}

// hostPaths are the bind mounts that a device offers, by label.
var hostPaths = map[string]string{
	"/var/run/docker.sock": "balena-socket", "/run/docker.sock": "balena-socket", "/var/run/balena.sock": "balena-socket",
	"/run/dbus": "dbus", "/sys": "sysfs", "/proc": "procfs",
	"/lib/modules": "kernel-modules", "/lib/firmware": "firmware",
	"/var/log/journal": "journal-logs", "/run/log/journal": "journal-logs", "/etc/machine-id": "journal-logs",
}

func (n *normalizer) volumes(s *Service, at string, v any) {
	var out []any
	for _, m := range objects(v) {
		source, target := field(m, "source"), field(m, "target")
		switch kind := field(m, "type"); kind {
		case "bind":
			feature := hostPaths[source]
			if feature == "" {
				n.fail(at, "cannot mount %s of this computer at %s: a device does not have it; use a named volume, or copy it into the image", source, target)
				continue
			}
			s.Labels["io.balena.features."+feature] = "1"
			n.notice(at, fmt.Sprintf("mounting %s; the label io.balena.features.%s is set instead", source, feature))
		case "tmpfs":
			out = append(out, m)
		case "volume":
			short := target
			if source != "" {
				short = source + ":" + target
			}
			if m["read_only"] == true {
				short += ":ro"
			}
			out = append(out, short)
		default:
			n.fail(at, "type %q is not supported; use volume or tmpfs", kind)
		}
	}
	if len(out) > 0 {
		s.Composition["volumes"] = out
	}
}
