// Package format prints rows as tables or through Go templates, as --format
// of docker-style commands does.
//
// A row is a map, so that a template's field is a key and {{json .}} gives all
// of it. "table" in front of a template adds a header made of the columns'
// titles.
package format

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/docker/go-units"
)

// A Row is one line's values by field name.
type Row map[string]string

// Titles are the headers of fields that are not simply the name in capitals.
type Titles map[string]string

var functions = template.FuncMap{
	"json": func(v any) (string, error) {
		var buf bytes.Buffer
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		err := enc.Encode(v)
		return strings.TrimSpace(buf.String()), err
	},
	"split": strings.Split,
	"join":  strings.Join,
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
	"title": func(s string) string {
		if s == "" {
			return s
		}
		return strings.ToUpper(s[:1]) + s[1:]
	},
	"truncate": func(s string, n int) string { return s[:min(n, len(s))] },
	"println":  fmt.Sprintln,
}

// Parse reads a template as people type it in a shell.
func Parse(text string) (*template.Template, error) {
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	t, err := template.New("").Funcs(functions).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("--format: %s", strings.TrimPrefix(err.Error(), "template: :"))
	}
	return t, nil
}

// Uses reports whether a format reads a field.
func Uses(format, field string) bool { return strings.Contains(format, "."+field) }

// Rows prints rows in a format. The default format is used for "" and "table".
func Rows(w io.Writer, format, def string, titles Titles, rows []Row) error {
	if format == "" || format == "table" {
		format = def
	}
	if format == "json" {
		format = "{{json .}}"
	}
	text, table := strings.CutPrefix(format, "table ")
	t, err := Parse(text)
	if err != nil {
		return err
	}
	if !table {
		return lines(w, t, rows)
	}
	// The widths of Docker's tables.
	tw := tabwriter.NewWriter(w, 20, 1, 3, ' ', 0)
	if err := lines(tw, t, append([]Row{header(titles, rows)}, rows...)); err != nil {
		return err
	}
	return tw.Flush()
}

func lines(w io.Writer, t *template.Template, rows []Row) error {
	for _, r := range rows {
		if err := t.Execute(w, r); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
		fmt.Fprintln(w)
	}
	return nil
}

// header has a title for every field there can be.
func header(titles Titles, rows []Row) Row {
	h := Row{}
	for _, r := range rows {
		for k := range r {
			h[k] = strings.ToUpper(k)
		}
	}
	for k, v := range titles {
		h[k] = v
	}
	return h
}

// Value prints one value through a template, for inspect and the like.
func Value(w io.Writer, format string, v any) error {
	if format == "json" {
		format = "{{json .}}"
	}
	t, err := Parse(format)
	if err != nil {
		return err
	}
	if err := t.Execute(w, v); err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	_, err = fmt.Fprintln(w)
	return err
}

// Size is a number of bytes for people, "27.9kB".
func Size(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// Ago is a time for people, "3 hours ago".
func Ago(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }

// ID shortens an object's ID.
func ID(id string, full bool) string {
	if full {
		return id
	}
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// Ellipsis shortens s to n characters.
func Ellipsis(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
