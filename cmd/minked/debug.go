package main

import (
	"encoding/json"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
)

// withDebug adds the debug endpoints, which are there while debugging is on:
// the stacks of all goroutines and the memory's statistics, with ?gc=1 without
// garbage. Profiles are not:
// net/http/pprof costs half a megabyte of the program; perf(1) does as well.
func withDebug(h http.Handler, on func() bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", h)
	mux.HandleFunc("GET /debug/pprof/goroutine", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Write(stacks())
	})
	mux.HandleFunc("GET /debug/vars", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("gc") {
			debug.FreeOSMemory()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		json.NewEncoder(w).Encode(map[string]any{"cmdline": os.Args, "memstats": m, "goroutines": runtime.NumGoroutine()})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if on() {
			mux.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func stacks() []byte {
	for size := 64 << 10; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return buf[:n]
		}
	}
}
