package boot

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/runtime/internal/wire"
)

// lookPath finds the program as a shell would, with the environment and the
// rights it will have. Its errors have the words and codes that Docker's have;
// scripts look for them.
func lookPath(args, env []string) (string, error) {
	if len(args) == 0 {
		return "", &wire.ProgramError{Code: 127, Text: "no command: the image names none and none was given"}
	}
	name := args[0]
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", programError(name, err)
		}
		return name, nil
	}
	var denied error
	for _, dir := range strings.Split(getenv(env, "PATH"), ":") {
		if !path.IsAbs(dir) {
			continue
		}
		p := path.Join(dir, name)
		err := executable(p)
		if err == nil {
			return p, nil
		}
		if errors.Is(err, unix.EACCES) {
			denied = err
		}
	}
	if denied != nil {
		return "", programError(name, denied)
	}
	return "", &wire.ProgramError{Code: 127, Text: fmt.Sprintf("exec: %q: executable file not found in $PATH", name)}
}

func executable(p string) error {
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return &os.PathError{Op: "stat", Path: p, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	if err := unix.Faccessat(unix.AT_FDCWD, p, unix.X_OK, unix.AT_EACCESS); err != nil {
		return err
	}
	return nil
}

func programError(name string, err error) error {
	code := 126
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		code = 127
	}
	return &wire.ProgramError{Code: code, Text: fmt.Sprintf("exec: %q: %v", name, err)}
}

func getenv(env []string, key string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(env[i], key+"="); ok {
			return v
		}
	}
	return ""
}

// withHome sets HOME from the container's passwd file unless it is set.
func withHome(env []string, uid uint32) []string {
	for _, e := range env {
		if strings.HasPrefix(e, "HOME=") {
			return env
		}
	}
	return append(env[:len(env):len(env)], "HOME="+homeOf(uid))
}

func homeOf(uid uint32) string {
	f, err := os.Open("/etc/passwd")
	if err != nil {
		return "/"
	}
	defer f.Close()
	want := strconv.FormatUint(uint64(uid), 10)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Split(lines.Text(), ":"); len(fields) >= 6 && fields[2] == want && fields[5] != "" {
			return fields[5]
		}
	}
	return "/"
}
