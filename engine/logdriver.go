package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime"
)

// Log drivers. The monitor writes files and sends to sockets; what it is to do
// is worked out here. Options have Docker's names and mean what they mean
// there, but for one: json-file is bounded by itself (jsonFile), kind to flash
// and enough to find a fault.

// logFile is how a log in files is kept.
type logFile struct {
	size     int64
	files    int
	sized    int // files, where max-size is given and max-file is not
	compress bool
}

var (
	jsonFile  = logFile{10 << 20, 3, 1, false}
	localFile = logFile{20 << 20, 5, 5, true} // Docker's; also of the copy beside a syslog
)

const defaultLogBuffer = 1 << 20 // of mode=non-blocking, Docker's

// logOptions are the options of each driver, without those of all.
var logOptions = map[string][]string{
	"json-file": {"max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag"},
	"local":     {"max-size", "max-file", "compress"},
	"journald":  {"labels", "labels-regex", "env", "env-regex", "tag"},
	"syslog": {"labels", "labels-regex", "env", "env-regex", "tag", "syslog-address", "syslog-facility", "syslog-format",
		"cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"},
	"none": nil,
}

var logDrivers = slices.Sorted(maps.Keys(logOptions))

// CheckLog says what is wrong with a log driver and its options.
func CheckLog(c container.LogConfig) error {
	known, ok := logOptions[c.Type]
	if !ok {
		return errdef.Invalid.Errorf("logger: no log driver named '%s' is registered; minke has %s", c.Type, strings.Join(logDrivers, ", "))
	}
	if c.Type == "none" {
		return nil
	}
	for _, key := range sortedKeys(c.Config) {
		if key != "mode" && key != "max-buffer-size" && !slices.Contains(known, key) {
			return errdef.Invalid.Errorf("unknown log opt '%s' for %s log driver; known are %s", key, c.Type, strings.Join(known, ", "))
		}
	}
	if _, err := logBuffer(c.Config); err != nil {
		return err
	}
	for _, key := range []string{"labels-regex", "env-regex"} {
		if _, err := regexp.Compile(c.Config[key]); err != nil {
			return errdef.Invalid.Errorf("invalid value for '%s': %w", key, err)
		}
	}
	if _, err := logTag(c.Config["tag"], &record{}); err != nil {
		return err
	}
	switch c.Type {
	case "json-file":
		_, err := jsonFile.with(c.Config, "")
		return err
	case "local":
		_, err := localFile.with(c.Config, "")
		return err
	case "syslog":
		if _, err := localFile.with(c.Config, "cache-"); err != nil {
			return err
		}
		_, err := parseSyslog(c.Config)
		return err
	}
	return nil
}

// settleLog fills what a container's log configuration leaves open from the
// daemon's, and checks it.
func (e *Engine) settleLog(c *container.LogConfig) error {
	own := e.defaultLog()
	c.Type = cmp.Or(c.Type, own.Type)
	if c.Type == own.Type {
		c.Config = merged(own.Config, c.Config)
	} else if c.Config == nil {
		c.Config = map[string]string{}
	}
	return CheckLog(*c)
}

func (e *Engine) defaultLog() container.LogConfig {
	return container.LogConfig{Type: cmp.Or(e.cfg.LogDriver, "json-file"), Config: e.cfg.LogOpts}
}

// with reads max-size, max-file and compress.
func (l logFile) with(opts map[string]string, prefix string) (logFile, error) {
	if s, ok := opts[prefix+"max-size"]; ok {
		n, err := units.RAMInBytes(s)
		if s != "-1" && (err != nil || n < 0) {
			return l, errdef.Invalid.Errorf("invalid value for '%smax-size': %q; want for example 10m", prefix, s)
		}
		l.size, l.files = max(n, 0), l.sized
	}
	if s, ok := opts[prefix+"max-file"]; ok {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return l, errdef.Invalid.Errorf("invalid value for '%smax-file': %q; want a number from 1", prefix, s)
		}
		l.files = n
	}
	if s, ok := opts[prefix+"compress"]; ok {
		b, err := strconv.ParseBool(s)
		if err != nil {
			return l, errdef.Invalid.Errorf("invalid value for '%scompress': %q; want true or false", prefix, s)
		}
		if b && (l.files < 2 || l.size == 0) {
			return l, errdef.Invalid.Errorf("%scompress cannot be true when max-file is less than 2 or max-size is not set", prefix)
		}
		l.compress = b
	}
	return l, nil
}

// logBuffer is the size of the buffer that mode=non-blocking asks for, or 0.
func logBuffer(opts map[string]string) (int, error) {
	size, given := opts["max-buffer-size"]
	switch opts["mode"] {
	case "", "blocking":
		if given {
			return 0, errdef.Invalid.Errorf("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
		}
		return 0, nil
	case "non-blocking":
	default:
		return 0, errdef.Invalid.Errorf("logger: logging mode not supported: %s", opts["mode"])
	}
	if !given {
		return defaultLogBuffer, nil
	}
	n, err := units.RAMInBytes(size)
	if err != nil || n < 1 || n > 1<<30 {
		return 0, errdef.Invalid.Errorf("error parsing option max-buffer-size: %q; want for example 4m, at most 1g", size)
	}
	return int(n), nil
}

// logTarget is what the monitor is to do with a container's output.
func (e *Engine) logTarget(ctx context.Context, r *record) (l runtime.Log, err error) {
	c := r.Host.LogConfig
	if c.Type == "none" {
		return l, nil
	}
	if l.Buffer, err = logBuffer(c.Config); err != nil {
		return l, err
	}
	attrs, err := logAttributes(r)
	if err != nil {
		return l, err
	}
	file := logFile{}
	switch c.Type {
	case "json-file":
		if file, err = jsonFile.with(c.Config, ""); err == nil && len(attrs) > 0 {
			data, _ := json.Marshal(attrs) // strings always can
			l.Attrs = string(data)
		}
	case "local":
		file, err = localFile.with(c.Config, "")
	case "journald":
		l.Forward, err = journald(r, attrs)
		return l, err
	case "syslog":
		if l.Forward, err = e.syslog(ctx, r); err != nil {
			return l, err
		}
		if uncached(c.Config) {
			return l, nil
		}
		file, err = localFile.with(c.Config, "cache-")
	}
	if err != nil {
		return l, err
	}
	l.Path = e.logPath(r)
	l.MaxSize, l.MaxFiles, l.Compress = file.size, file.files, file.compress
	return l, os.MkdirAll(filepath.Dir(l.Path), 0o700)
}

// uncached reports whether no copy is kept of what goes to a syslog.
func uncached(opts map[string]string) bool {
	off, _ := strconv.ParseBool(opts["cache-disabled"])
	return off
}

// logPath is the newest file of a container's log; "" if it has none.
func (e *Engine) logPath(r *record) string {
	switch r.Host.LogConfig.Type {
	case "json-file":
		return filepath.Join(e.containerDir(r.ID), r.ID+"-json.log")
	case "local", "syslog":
		return filepath.Join(e.containerDir(r.ID), "local-logs", "container.log")
	}
	return ""
}

// logAttributes are the labels and variables that log options choose, and the
// tag if one is asked for.
func logAttributes(r *record) (map[string]string, error) {
	opts, out := r.Host.LogConfig.Config, map[string]string{}
	choose := func(from map[string]string, names, pattern string) error {
		for _, name := range strings.Split(opts[names], ",") {
			if v, ok := from[name]; ok {
				out[name] = v
			}
		}
		if opts[pattern] == "" {
			return nil
		}
		re, err := regexp.Compile(opts[pattern])
		if err != nil {
			return errdef.Invalid.Errorf("invalid value for '%s': %w", pattern, err)
		}
		for name, v := range from {
			if re.MatchString(name) {
				out[name] = v
			}
		}
		return nil
	}
	if err := choose(r.Config.Labels, "labels", "labels-regex"); err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, kv := range r.Config.Env {
		if name, v, ok := strings.Cut(kv, "="); ok {
			env[name] = v
		}
	}
	if err := choose(env, "env", "env-regex"); err != nil {
		return nil, err
	}
	if opts["tag"] != "" {
		tag, err := logTag(opts["tag"], r)
		if err != nil {
			return nil, err
		}
		out["tag"] = tag
	}
	return out, nil
}

var tagField = regexp.MustCompile(`\{\{\s*\.?(\w*)\s*\}\}`)

// logTag fills in a tag: Docker's template with the fields, without the
// functions and conditions of Go's language that it takes.
func logTag(template string, r *record) (string, error) {
	fields := map[string]func() string{
		"ID": func() string { return shortID(r.ID) }, "FullID": func() string { return r.ID },
		"Name": func() string { return r.Name }, "FullName": func() string { return "/" + r.Name },
		"ImageID":     func() string { return shortID(strings.TrimPrefix(string(r.Image), "sha256:")) },
		"ImageFullID": func() string { return string(r.Image) }, "ImageName": func() string { return r.Config.Image },
		"DaemonName": func() string { return "docker" },
		"Command":    func() string { return strings.Join(append([]string{r.Path}, r.Args...), " ") },
		"Hostname":   func() string { h, _ := os.Hostname(); return h },
	}
	var unknown error
	out := tagField.ReplaceAllStringFunc(template, func(m string) string {
		name := tagField.FindStringSubmatch(m)[1]
		f := fields[name]
		switch {
		case f == nil:
			unknown = errdef.Invalid.Errorf("invalid value for 'tag': %s is not known; known are %s", m, strings.Join(sortedKeys(fields), ", "))
			return ""
		case r.Config == nil:
			return "" // it is only to be checked
		}
		return f()
	})
	if unknown == nil && strings.Contains(out, "{{") {
		unknown = errdef.Invalid.Errorf("invalid value for 'tag': %q; of templates only fields such as {{.Name}} are known", template)
	}
	return out, unknown
}

func shortID(id string) string { return id[:min(len(id), 12)] }

// journald is Docker's entry: who it was, what the user asked for.
func journald(r *record, attrs map[string]string) (*runtime.Forward, error) {
	tag, err := logTag(cmp.Or(r.Host.LogConfig.Config["tag"], "{{.ID}}"), r)
	if err != nil {
		return nil, err
	}
	fields := map[string]string{
		"CONTAINER_ID": shortID(r.ID), "CONTAINER_ID_FULL": r.ID, "CONTAINER_NAME": r.Name, "CONTAINER_TAG": tag,
		"IMAGE_NAME": r.Config.Image, "SYSLOG_IDENTIFIER": tag,
	}
	delete(attrs, "tag")
	for name, v := range attrs {
		if name = journalName(name); name != "" && fields[name] == "" {
			fields[name] = v
		}
	}
	f := &runtime.Forward{Network: "unixgram", Address: journalSocket}
	for _, name := range sortedKeys(fields) {
		// A newline would begin another field.
		f.Journal = append(f.Journal, name+"="+strings.ReplaceAll(fields[name], "\n", " "))
	}
	return f, nil
}

// journalSocket is where journald takes entries.
const journalSocket = "/run/systemd/journal/socket"

// journalName makes a field name that journald takes: capitals, digits and
// underscores, not first an underscore, which would mark a trusted field.
func journalName(s string) string {
	s = strings.Map(func(c rune) rune {
		if 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' {
			return c
		}
		return '_'
	}, strings.ToUpper(s))
	return strings.TrimLeft(s, "_")
}

var facilities = strings.Fields("kern user mail daemon auth syslog lpr news uucp cron authpriv ftp - - - - local0 local1 local2 local3 local4 local5 local6 local7")

const daemonFacility = 3

// parseSyslog reads the options of the syslog driver; Address may be a name.
func parseSyslog(opts map[string]string) (f runtime.Forward, err error) {
	f = runtime.Forward{Network: "unixgram", Address: "/dev/log", Syslog: &runtime.Syslog{Facility: daemonFacility, Format: opts["syslog-format"]}}
	switch f.Syslog.Format {
	case "", "rfc3164", "rfc5424", "rfc5424micro":
	default:
		return f, errdef.Invalid.Errorf("Invalid syslog format: %s; want rfc3164, rfc5424 or rfc5424micro", f.Syslog.Format)
	}
	if s := opts["syslog-facility"]; s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			n = slices.Index(facilities, s)
		}
		if n < 0 || n > 23 {
			return f, errdef.Invalid.Errorf("invalid syslog facility: %s", s)
		}
		f.Syslog.Facility = n
	}
	address := opts["syslog-address"]
	if address == "" {
		return f, nil
	}
	network, rest, ok := strings.Cut(address, "://")
	f.Network, f.Address = network, rest
	switch {
	case !ok:
	case (network == "unix" || network == "unixgram") && filepath.IsAbs(rest):
		return f, nil
	case network == "tcp" || network == "udp":
		if _, _, err := net.SplitHostPort(rest); err != nil {
			f.Address = net.JoinHostPort(strings.Trim(rest, "[]"), "514")
		}
		return f, nil
	case network == "tcp+tls":
		return f, errdef.Invalid.Errorf("syslog over TLS is not supported; send to a local relay such as rsyslog")
	}
	return f, errdef.Invalid.Errorf("invalid syslog-address %q: want udp://host:514, tcp://host:514, unix:///path or unixgram:///path", address)
}

// syslog resolves the address: the monitor looks up no names.
func (e *Engine) syslog(ctx context.Context, r *record) (*runtime.Forward, error) {
	opts := r.Host.LogConfig.Config
	f, err := parseSyslog(opts)
	if err != nil {
		return nil, err
	}
	if f.Syslog.Tag, err = logTag(cmp.Or(opts["tag"], "{{.ID}}"), r); err != nil {
		return nil, err
	}
	f.Syslog.Host, _ = os.Hostname()
	if f.Network != "tcp" && f.Network != "udp" {
		return &f, nil
	}
	host, port, err := net.SplitHostPort(f.Address)
	if err != nil {
		return nil, errdef.Invalid.Errorf("syslog-address: %w", err)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("failed to initialize logging driver: %w", err)
	}
	n, err := net.DefaultResolver.LookupPort(ctx, f.Network, port)
	if err != nil {
		return nil, fmt.Errorf("failed to initialize logging driver: %w", err)
	}
	f.Address = netip.AddrPortFrom(addrs[0].Unmap(), uint16(n)).String()
	return &f, nil
}
