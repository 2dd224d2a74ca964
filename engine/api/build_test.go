package api

import (
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/minke-os/minke/engine/build"
	"github.com/minke-os/minke/oci"
)

func TestBuildParameters(t *testing.T) {
	query := url.Values{
		"t": {"a:1", "b"}, "dockerfile": {"d/f"}, "target": {"x"}, "nocache": {"1"}, "pull": {"true"}, "rm": {"0"}, "q": {"0"}, "platform": {"linux/arm/v7"},
		"buildargs": {`{"A":"1","B":null}`}, "labels": {`{"l":"v"}`}, "cachefrom": {`["c"]`}, "volumes": {`["/a:/b:ro"]`},
		"extrahosts": {"a:1", "b:2,c:3"}, "securityopt": {"seccomp=unconfined", "no-new-privileges"}, "memory": {"1"}, "memswap": {"-1"}, "cpushares": {"2"},
		"cpuquota": {"3"}, "cpuperiod": {"4"}, "shmsize": {"5"}, "cpusetcpus": {"0"}, "cpusetmems": {"1"}, "cgroupparent": {"/g"}, "networkmode": {"none"},
		"isolation": {"default"}, "ulimits": {`[{"Name":"nofile"}]`}, "forcerm": {"1"}, "outputs": {"[]"}, "version": {"1"},
	}
	got, err := buildOptions(httptest.NewRequest("POST", "/build?"+query.Encode(), nil))
	if err != nil {
		t.Fatal(err)
	}
	var tags []string
	for _, ref := range got.Tags {
		tags = append(tags, ref.Familiar())
	}
	if !reflect.DeepEqual(tags, []string{"a:1", "b:latest"}) {
		t.Errorf("tags = %v", tags)
	}
	got.Tags = nil
	want := build.Options{
		Dockerfile: "d/f", Target: "x", NoCache: true, Pull: true, Platform: oci.Platform{OS: "linux", Architecture: "arm", Variant: "v7"},
		Args: map[string]*string{"A": new("1"), "B": nil}, Labels: map[string]string{"l": "v"}, CacheFrom: []string{"c"},
		Host: build.HostConfig{
			Volumes: []string{"/a:/b:ro"}, ExtraHosts: []string{"a:1", "b:2", "c:3"}, SecurityOpt: []string{"seccomp=unconfined", "no-new-privileges"},
			Memory: 1, MemorySwap: -1, CPUShares: 2, CPUQuota: 3, CPUPeriod: 4, ShmSize: 5, CPUSetCPUs: "0", CPUSetMems: "1", CgroupParent: "/g",
			NetworkMode: "none", Isolation: "default", Ulimits: `[{"Name":"nofile"}]`,
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("options = %+v\nwant      %+v", got, want)
	}
	for _, bad := range []string{"version=2", "squash=1", "outputs=[{}]", "t=A@sha256:x", "memory=much", "buildargs=x", "platform=a/b/c/d/e"} {
		if o, err := buildOptions(httptest.NewRequest("POST", "/build?"+bad, nil)); err == nil {
			t.Errorf("%s gives %+v, want an error", bad, o)
		}
	}
}

func TestBadSecretsAreNotQuoted(t *testing.T) {
	r := httptest.NewRequest("POST", "/build", nil)
	r.Header.Set(secretsHeader, "aHVudGVyMg==")
	if _, err := buildSecrets(r); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("buildSecrets = %v", err)
	}
}

// The docker CLI ends with the code of the command that failed.
func TestFailedBuildTellsTheExitCode(t *testing.T) {
	w := httptest.NewRecorder()
	m := &messages{w: w}
	if err := m.stream("Step 1/1 : RUN false\n"); err != nil {
		t.Fatal(err)
	}
	if err := m.fail(&build.ExitError{Command: "false", Code: 7}); err != nil {
		t.Fatal(err)
	}
	want := `{"errorDetail":{"code":7,"message":"The command 'false' returned a non-zero code: 7"},"error":"The command 'false' returned a non-zero code: 7"}`
	if got := w.Body.String(); !strings.Contains(got, want) {
		t.Errorf("the answer is %s, want it to end with %s", got, want)
	}
}
