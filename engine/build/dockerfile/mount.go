package dockerfile

import (
	"encoding/csv"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

// A MountType is what RUN --mount shows.
type MountType string

const (
	Bind   MountType = "bind"
	Cache  MountType = "cache"
	Tmpfs  MountType = "tmpfs"
	Secret MountType = "secret"
	SSH    MountType = "ssh"
)

// A Sharing says who may have a cache at once; "" is Shared.
type Sharing string

const (
	Shared  Sharing = "shared"
	Private Sharing = "private"
	Locked  Sharing = "locked"
)

// A Mount is RUN --mount. What was not given is zero.
type Mount struct {
	Type     MountType
	From     string // a stage or an image; "" is the context
	Source   string
	Target   string
	ReadOnly bool
	Size     int64  // in bytes
	ID       string // of a cache, secret or socket
	Sharing  Sharing
	Required bool
	Env      *string // of a secret: the variable to have it in; "" for its ID
	Mode     *uint64
	UID      *uint64
	GID      *uint64
}

func mountFields(text string) ([]string, error) {
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return nil, fmt.Errorf("failed to parse csv mounts: %w", err)
	}
	return fields, nil
}

// checkMount finds out early what can be known before variables have values:
// the stages that a stage waits for.
func checkMount(text string) error {
	fields, err := mountFields(text)
	for _, field := range fields {
		key, value, _ := strings.Cut(field, "=")
		if i := strings.IndexByte(value, '$'); strings.EqualFold(key, "from") && i >= 0 && i < len(value)-1 {
			return fmt.Errorf("'from' doesn't support variable expansion, define alias stage instead")
		}
	}
	return err
}

var mountKeys = []string{
	"type", "from", "source", "target", "readonly", "id", "sharing", "required", "size", "mode", "uid", "gid",
	"src", "dst", "destination", "ro", "rw", "readwrite", "env",
}

// parseMount reads a mount's fields in their order: which of them are valid
// depends on the type, which clients give first.
func parseMount(text string, expand Expander) (*Mount, error) {
	fields, err := mountFields(text)
	if err != nil {
		return nil, err
	}
	m := &Mount{Type: Bind}
	var readOnly *bool
	for _, field := range fields {
		key, value, hasValue := strings.Cut(field, "=")
		key = strings.ToLower(key)
		if !hasValue {
			switch key {
			case "readonly", "ro", "readwrite", "rw", "required":
				value = "true"
			default:
				return nil, fmt.Errorf("invalid field '%s' must be a key=value pair", field)
			}
		} else if value, err = expand(value); err != nil {
			return nil, err
		}
		switch key {
		case "readonly", "ro", "readwrite", "rw":
			yes, err := strconv.ParseBool(value)
			if err != nil {
				return nil, fmt.Errorf("invalid value for %s: %s", key, value)
			}
			readOnly = new(yes == (key == "readonly" || key == "ro"))
		default:
			if err := m.set(key, value, field); err != nil {
				return nil, err
			}
		}
	}
	if m.ReadOnly = m.Type != Cache && m.Type != Tmpfs; readOnly != nil {
		m.ReadOnly = *readOnly
	}
	return m, m.check()
}

func (m *Mount) set(key, value, field string) (err error) {
	switch key {
	case "type":
		m.Type = MountType(strings.ToLower(value))
		if types := []string{"bind", "cache", "tmpfs", "secret", "ssh"}; !slices.Contains(types, string(m.Type)) {
			return didYouMean(fmt.Errorf("unsupported mount type %q", value), value, types, true)
		}
	case "from":
		m.From = value
	case "source", "src":
		m.Source = value
	case "target", "dst", "destination":
		m.Target = value
	case "id":
		m.ID = value
	case "env":
		m.Env = &value
	case "sharing":
		m.Sharing = Sharing(strings.ToLower(value))
		if modes := []string{"shared", "private", "locked"}; !slices.Contains(modes, string(m.Sharing)) {
			return didYouMean(fmt.Errorf("unsupported sharing value %q", value), value, modes, true)
		}
	case "required", "size":
		if key == "required" && m.Type != Secret && m.Type != SSH || key == "size" && m.Type != Tmpfs {
			return fmt.Errorf("unexpected key '%s' for mount type '%s'", key, m.Type)
		}
		if key == "required" {
			m.Required, err = strconv.ParseBool(value)
		} else {
			m.Size, err = units.RAMInBytes(value)
		}
		if err != nil {
			return fmt.Errorf("invalid value for %s: %s", key, value)
		}
	case "mode":
		return number(&m.Mode, key, value, 8)
	case "uid":
		return number(&m.UID, key, value, 10)
	case "gid":
		return number(&m.GID, key, value, 10)
	default:
		return didYouMean(fmt.Errorf("unexpected key '%s' in '%s'", key, field), key, mountKeys, true)
	}
	return nil
}

func number(to **uint64, key, value string, base int) error {
	n, err := strconv.ParseUint(value, base, 32)
	if err != nil {
		return fmt.Errorf("invalid value %s for %s", value, key)
	}
	*to = &n
	return nil
}

// check looks at what does not go together.
func (m *Mount) check() error {
	plain := m.Type == Bind || m.Type == Tmpfs
	switch {
	case plain && m.Mode != nil:
		return fmt.Errorf("mode not allowed for %q type mounts", m.Type)
	case plain && m.UID != nil:
		return fmt.Errorf("uid not allowed for %q type mounts", m.Type)
	case plain && m.GID != nil:
		return fmt.Errorf("gid not allowed for %q type mounts", m.Type)
	case m.Type == Secret && m.From != "":
		return fmt.Errorf("secret mount should not have a from")
	case m.Type == Secret && m.Sharing != "":
		return fmt.Errorf("secret mount should not define sharing")
	case m.Type == Secret && m.Source == "" && m.Target == "" && m.ID == "":
		return fmt.Errorf("invalid secret mount. one of source, target required")
	case m.Type == Secret && m.Source != "" && m.ID != "":
		return fmt.Errorf("both source and id can't be set")
	case m.Type != Cache && m.Sharing != "":
		return fmt.Errorf("invalid cache sharing set for %v mount", m.Type)
	}
	return nil
}
