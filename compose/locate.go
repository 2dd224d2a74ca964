package compose

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/minke-os/minke/internal/errdef"
)

var (
	keyPath   = regexp.MustCompile(`\b(?:services|networks|volumes|secrets|configs)\.[\w.-]+(?:\.[\w.\[\]-]+)*`)
	nameFirst = regexp.MustCompile(`^service "?([\w.-]+)"? (.*)$`)
)

// readable says in one line what is wrong with a compose file, and where.
func readable(err error, files []string) error {
	text := err.Error()
	for _, f := range files {
		text = strings.ReplaceAll(text, "validating "+f+": ", "")
		if werr := wellFormed(f); werr != nil {
			return errdef.Invalid.Wrap(werr)
		}
	}
	text = strings.TrimSuffix(text, ": invalid compose project")
	path := keyPath.FindString(text)
	if key, ok := strings.CutSuffix(text, " false schema"); ok {
		return errdef.Invalid.Errorf("%s%s: unknown key; check its spelling and indentation", locate(files, key), key)
	}
	if m := nameFirst.FindStringSubmatch(text); m != nil && path == "" {
		return errdef.Invalid.Errorf("%sservices.%s: %s", locate(files, "services."+m[1]), m[1], m[2])
	}
	return errdef.Invalid.Errorf("%s%s", locate(files, path), text)
}

// wellFormed reports a file that is not YAML, with its line.
func wellFormed(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(data, &node); err != nil {
		text := strings.TrimPrefix(err.Error(), "yaml: ")
		if m := lastLine.FindAllStringSubmatch(text, -1); m != nil {
			return fmt.Errorf("%s:%s: not valid YAML: %s", filepath.Base(file), m[len(m)-1][1], text)
		}
		return fmt.Errorf("%s: not valid YAML: %s", filepath.Base(file), text)
	}
	return nil
}

var lastLine = regexp.MustCompile(`line (\d+)`)

// locate is "file:line: " of a key such as services.web.ports, in the last
// file that has it, or as much of the key as any file has.
func locate(files []string, path string) string {
	best, depth := "", 0
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil { // it was readable a moment ago; the key alone must do
			continue
		}
		var doc yaml.Node
		if yaml.Unmarshal(data, &doc) != nil || len(doc.Content) == 0 {
			continue
		}
		line, d := find(doc.Content[0], path)
		if d > 0 && d >= depth {
			best, depth = fmt.Sprintf("%s:%d: ", filepath.Base(f), line), d
		}
	}
	return best
}

// find follows path through mappings as far as it goes. Names may contain
// dots, so at each level the longest key that fits is taken.
func find(node *yaml.Node, path string) (line, depth int) {
	for path != "" && node.Kind == yaml.MappingNode {
		var next *yaml.Node
		rest := ""
		longest := -1
		for i := 0; i+1 < len(node.Content); i += 2 {
			key := node.Content[i].Value
			if (path == key || strings.HasPrefix(path, key+".")) && len(key) > longest {
				longest, next = len(key), node.Content[i+1]
				line, rest = node.Content[i].Line, strings.TrimPrefix(path[len(key):], ".")
			}
		}
		if next == nil {
			break
		}
		node, path = next, rest
		depth++
	}
	return line, depth
}
