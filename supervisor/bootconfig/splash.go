package bootconfig

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
)

// maxSplash bounds the picture, in bytes: boot partitions are small.
const maxSplash = 4 << 20

// splash is the picture that a host shows as it boots: balena-logo.png, which
// the variable HOST_SPLASH_image has in base64, alone or as a data URI. The
// host's own is kept as balena-logo-default.png and comes back when the
// variable goes.
func splash(dir string) Backend {
	file, own := filepath.Join(dir, "balena-logo.png"), filepath.Join(dir, "balena-logo-default.png")
	const prefix = "HOST_SPLASH_"
	return Backend{prefix, textFile{
		path: file, large: true,
		read: func(text string) map[string]string { return map[string]string{"image": text} },
		edit: func(text string, want map[string]string, gone []string) (string, error) {
			if err := only(prefix, want, "image"); err != nil {
				return "", err
			}
			kept, err := os.ReadFile(own)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
			value, given := want["image"]
			if !given {
				if err == nil && slices.Contains(gone, "image") {
					return string(kept), nil
				}
				return text, nil
			}
			picture, perr := decodePNG(value)
			if perr != nil {
				return "", perr
			}
			if err != nil && text != "" {
				if err := durable.WriteFile(own, []byte(text), 0o644); err != nil {
					return "", err
				}
			}
			return picture, os.MkdirAll(dir, 0o755)
		},
	}}
}

func decodePNG(value string) (string, error) {
	if uri, ok := strings.CutPrefix(value, "data:"); ok {
		_, value, _ = strings.Cut(uri, ",")
	}
	data, err := base64.StdEncoding.DecodeString(value)
	if err != nil || !strings.HasPrefix(string(data), "\x89PNG\r\n\x1a\n") || len(data) > maxSplash {
		return "", errdef.Invalid.Errorf("HOST_SPLASH_image: want a PNG picture of at most %d MB in base64", maxSplash>>20)
	}
	return string(data), nil
}
