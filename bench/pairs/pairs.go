// Package pairs makes images in two versions each, as updates of devices are:
// only application files changed, a Go program rebuilt, the base system with
// its security updates, one npm dependency bumped. In each pair the second
// version is a rebuild, so that files which are the same have another time.
//
// Everything comes from Debian, the npm registry, this repository and a fixed
// pseudo-random stream. What is in a directory already is used again; of a pair
// that was broken off, nothing is.
package pairs

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A Pair is two versions of an image.
type Pair struct {
	Name     string // "app", "go", "os", "npm"
	What     string // for people
	Old, New string // archives as docker save writes them
	// OldTag and NewTag are the names in the archives.
	OldTag, NewTag string
	// Fresh is the size of those files' content in New that Old has nowhere.
	Fresh int64
}

// Registry is where the images' names say that they are.
const Registry = "localhost:5000"

// Make makes all pairs in a directory. root is this repository.
func Make(ctx context.Context, dir, root string) ([]Pair, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	m := maker{dir: dir, root: root}
	var all []Pair
	for _, p := range []struct {
		name, what string
		layers     func(ctx context.Context, version int) ([]string, error)
	}{
		{"app", "application files changed", m.app},
		{"go", "Go program rebuilt", m.program},
		{"os", "base system, security updates", m.system},
		{"npm", "one npm dependency bumped", m.npm},
	} {
		pair := Pair{Name: p.name, What: p.what}
		for version, to := range map[int]*string{1: &pair.Old, 2: &pair.New} {
			path, err := m.image(ctx, p.name, version, p.layers)
			if err != nil {
				return nil, fmt.Errorf("pair %s, version %d: %w", p.name, version, err)
			}
			*to = path
		}
		pair.OldTag, pair.NewTag = tag(p.name, 1), tag(p.name, 2)
		var err error
		if pair.Fresh, err = fresh(pair.Old, pair.New); err != nil {
			return nil, err
		}
		all = append(all, pair)
	}
	return all, nil
}

func tag(name string, version int) string { return fmt.Sprintf("%s/%s:%d", Registry, name, version) }

type maker struct{ dir, root string }

// image makes an archive of the layers, bottom first.
func (m maker) image(ctx context.Context, name string, version int, layers func(context.Context, int) ([]string, error)) (string, error) {
	path := filepath.Join(m.dir, fmt.Sprintf("%s-%d.tar", name, version))
	return path, m.once(path, func(tmp string) error {
		files, err := layers(ctx, version)
		if err != nil {
			return err
		}
		return writeArchive(tmp, tag(name, version), when(version), files)
	})
}

// once makes a file under another name and renames it.
func (m maker) once(path string, write func(tmp string) error) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	tmp := filepath.Join(m.dir, "tmp-"+filepath.Base(path))
	if err := write(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// when a version was built.
func when(version int) time.Time { return time.Date(2026, 1, version, 3, 0, 0, 0, time.UTC) }

// app is 4 MB of text on top of the base system; in a seventh of its files one
// line in 64 changes.
func (m maker) app(ctx context.Context, version int) ([]string, error) {
	base, err := m.debian(ctx, 1)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(m.dir, fmt.Sprintf("layer-app-%d.tar", version))
	return []string{base, path}, m.once(path, func(tmp string) error {
		return writeTar(tmp, func(w *tar.Writer) error {
			for i := range 200 {
				text := words(uint64(i), 21_000)
				if version > 1 && i%7 == 0 {
					text = edited(text, words(uint64(i+1000), 21_000))
				}
				if err := file(w, fmt.Sprintf("app/src/module%03d.js", i), text, when(version)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// words is text that compresses about as source does.
func words(seed uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var b strings.Builder
	for b.Len() < size {
		fmt.Fprintf(&b, "const v%d = f%d(%q);\n", r.IntN(100_000), r.IntN(500), fmt.Sprintf("%08x", r.Uint32()))
	}
	return []byte(b.String()[:size])
}

// edited takes every 64th line from another text.
func edited(text, other []byte) []byte {
	lines, others := bytes.SplitAfter(text, []byte("\n")), bytes.SplitAfter(other, []byte("\n"))
	for i := 20; i < min(len(lines), len(others))-1; i += 64 {
		lines[i] = others[i]
	}
	return bytes.Join(lines, nil)
}

// program is minked alone; the second version has one function more.
func (m maker) program(ctx context.Context, version int) ([]string, error) {
	path := filepath.Join(m.dir, fmt.Sprintf("layer-go-%d.tar", version))
	return []string{path}, m.once(path, func(tmp string) error {
		bin := tmp + ".bin"
		defer os.Remove(bin)
		args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", bin}
		if version > 1 {
			more, err := m.overlay()
			if err != nil {
				return err
			}
			args = append(args, "-overlay", more)
		}
		cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/minked")...)
		cmd.Dir, cmd.Env = m.root, append(os.Environ(), "CGO_ENABLED=0")
		if err := run(cmd); err != nil {
			return err
		}
		data, err := os.ReadFile(bin)
		if err != nil {
			return err
		}
		return writeTar(tmp, func(w *tar.Writer) error { return file(w, "minked", data, when(version)) })
	})
}

// overlay adds a file to the package main of minked.
func (m maker) overlay() (string, error) {
	root, err := filepath.Abs(m.root)
	if err != nil {
		return "", err
	}
	source, list := filepath.Join(m.dir, "more.go"), filepath.Join(m.dir, "overlay.json")
	text := "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n)\n\nfunc init() {\n\tif len(os.Args) > 1000 {\n\t\tfmt.Println(\"version 2\", os.Args)\n\t}\n}\n"
	data, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, "cmd/minked/more.go"): source}})
	if err != nil {
		return "", err
	}
	return list, errors.Join(os.WriteFile(source, []byte(text), 0o644), os.WriteFile(list, data, 0o644))
}

// system is the base system alone.
func (m maker) system(ctx context.Context, version int) ([]string, error) {
	base, err := m.debian(ctx, version)
	return []string{base}, err
}

// debian is Debian 12 with what many applications want; its second version has
// the security updates.
func (m maker) debian(ctx context.Context, version int) (string, error) {
	const mirror = "deb http://deb.debian.org/debian"
	sources := []string{mirror + " bookworm main"}
	if version > 1 {
		sources = append(sources, mirror+"-security bookworm-security main", mirror+" bookworm-updates main")
	}
	path := filepath.Join(m.dir, fmt.Sprintf("layer-os-%d.tar", version))
	return path, m.once(path, func(tmp string) error {
		args := append([]string{
			"--quiet", "--variant=minbase", "--include=ca-certificates,curl,openssh-client,openssl,python3,libxml2",
			"--format=tar", "--customize-hook=rm -rf $1/var/cache/apt/* $1/var/lib/apt/lists/*", "bookworm", tmp,
		}, sources...)
		return run(exec.CommandContext(ctx, "mmdebstrap", args...))
	})
}

// npm is the base system and node_modules, in which lodash is bumped.
func (m maker) npm(ctx context.Context, version int) ([]string, error) {
	base, err := m.debian(ctx, 1)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(m.dir, fmt.Sprintf("layer-npm-%d.tar", version))
	return []string{base, path}, m.once(path, func(tmp string) error {
		dir, err := os.MkdirTemp(m.dir, "tmp-npm-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		lodash := map[int]string{1: "lodash@4.17.20", 2: "lodash@4.17.21"}[version]
		cmd := exec.CommandContext(ctx, "npm", "install", "--prefix", dir, "--no-audit", "--no-fund", "--ignore-scripts", "--silent",
			"typescript@5.4.5", "date-fns@3.6.0", "express@4.18.2", "aws-sdk@2.1500.0", lodash)
		if err := run(cmd); err != nil {
			return err
		}
		return writeTar(tmp, func(w *tar.Writer) error {
			return tree(w, filepath.Join(dir, "node_modules"), "app/node_modules", when(version))
		})
	})
}

func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

func tree(w *tar.Writer, dir, at string, mtime time.Time) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := filepath.Join(at, rel)
		switch {
		case d.IsDir():
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: mtime})
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: mtime})
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return file(w, name, data, mtime)
	})
}

func file(w *tar.Writer, name string, data []byte, mtime time.Time) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(data)), ModTime: mtime}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

func writeTar(path string, fill func(*tar.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := fill(w); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}
