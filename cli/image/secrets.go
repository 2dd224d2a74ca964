package image

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/errdef"
)

// maxSecrets bounds what goes into a header, of which engines take 1 MB.
const maxSecrets = 500 << 10

// readSecrets reads id=NAME,src=FILE, id=NAME,env=VARIABLE, and id=NAME alone,
// which is a variable of that name, else a file.
func readSecrets(specs []string, getenv func(string) string) (map[string][]byte, error) {
	secrets, size := map[string][]byte{}, 0
	for _, spec := range specs {
		id, value, err := readSecret(spec, getenv)
		if err != nil {
			return nil, fmt.Errorf("--secret %s: %w", spec, err)
		}
		secrets[id] = value
		size += len(value)
	}
	if size > maxSecrets {
		return nil, errdef.Invalid.Errorf("secrets have %d bytes; at most %d go with a build", size, maxSecrets)
	}
	return secrets, nil
}

func readSecret(spec string, getenv func(string) string) (id string, value []byte, err error) {
	var src, env string
	kind := ""
	for field := range strings.SplitSeq(spec, ",") {
		k, v, ok := strings.Cut(field, "=")
		if !ok {
			return "", nil, errdef.Invalid.Errorf("%q is not key=value", field)
		}
		switch strings.ToLower(k) {
		case "id":
			id = v
		case "src", "source":
			src = v
		case "env":
			env = v
		case "type":
			kind = v
		default:
			return "", nil, errdef.Invalid.Errorf("unknown key %q; there are id, src, env and type", k)
		}
	}
	if kind == "env" && env == "" {
		env, src = src, ""
	}
	switch {
	case id == "":
		return "", nil, errdef.Invalid.Errorf("id is missing")
	case kind != "" && kind != "file" && kind != "env":
		return "", nil, errdef.Invalid.Errorf("unknown type %q; there are file and env", kind)
	case src == "" && env == "":
		if v := getenv(id); v != "" && kind != "file" {
			return id, []byte(v), nil
		}
		src = id
	}
	if env != "" {
		return id, []byte(getenv(env)), nil
	}
	value, err = os.ReadFile(src)
	return id, value, err
}

// secretsOption lets a client send secrets along with every request; it is one
// for a single build. See docs/builder.md for the header.
func secretsOption(secrets map[string][]byte) []client.Opt {
	if len(secrets) == 0 {
		return nil
	}
	data, err := json.Marshal(secrets)
	if err != nil {
		panic(err) // a map of bytes
	}
	return []client.Opt{client.WithHTTPHeaders(map[string]string{"X-Minke-Build-Secrets": base64.URLEncoding.EncodeToString(data)})}
}
