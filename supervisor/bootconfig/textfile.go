package bootconfig

import (
	"errors"
	"io/fs"
	"maps"
	"os"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
)

// A textFile is a file on the boot partition that is replaced as a whole.
type textFile struct {
	path  string
	large bool // too large to be told to a server
	// read are the settings that a file's text makes.
	read func(text string) map[string]string
	// edit gives a file's text other settings; those in gone get the host's
	// default. It must give the same text when it is done again.
	edit func(text string, want map[string]string, gone []string) (string, error)
}

func (f textFile) text() (string, error) {
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(data), err
}

func (f textFile) current() (map[string]string, error) {
	if f.large {
		return nil, nil
	}
	text, err := f.text()
	return f.read(text), err
}

func (f textFile) set(want map[string]string, gone []string) (reboot bool, err error) {
	had, err := f.text()
	if err != nil {
		return false, err
	}
	text, err := f.edit(had, want, gone)
	if err != nil || maps.Equal(f.read(text), f.read(had)) {
		return false, err // only the form would change
	}
	if err := durable.WriteFile(f.path, []byte(text), 0o644); err != nil {
		return false, err
	}
	// FAT on a worn card: what cannot be read back is not worth a reboot, which
	// would be the first of many.
	again, err := f.text()
	if err == nil && again != text {
		err = doesNotKeep(f.path)
	}
	return err == nil, err
}

func doesNotKeep(path string) error {
	return errdef.Unavailable.Errorf("%s does not keep what is written to it; is the medium worn out?", path)
}
