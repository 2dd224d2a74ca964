package build

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/oci"
)

func TestSyntaxOfDockerfiles(t *testing.T) {
	b := newBench(t)
	img, out := b.mustBuild(Options{Args: map[string]*string{"GIVEN": new("given")}, Platform: oci.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}}, files{"Dockerfile": "# escape=`\n# syntax=somewhere/else:1\n" + `
ARG BASE=scratch
FROM ${BASE:-other} AS first
# a comment
ENV a=1 b="two words" c=three` + "`" + ` words d='$a' e=five ` + "`\n" + `
  # a comment in between

  f=six
ENV old style value
ARG GIVEN
ARG PATHLIKE=/usr/local/lib/x.tar.gz
LABEL unset=${none:-default} empty=${none-x} set=${GIVEN:+yes} notset=${none:+yes} prefix=${PATHLIKE#*/} longprefix=${PATHLIKE##*/} suffix=${PATHLIKE%.*} longsuffix=${PATHLIKE%%.*} first=${PATHLIKE/l/L} all=${PATHLIKE//l/L} "quoted key"="quoted value" escaped=` + "`$a" + `
LABEL platform=$TARGETPLATFORM
ARG TARGETPLATFORM TARGETARCH TARGETVARIANT BUILDOS
LABEL platforms="$TARGETPLATFORM $TARGETARCH $TARGETVARIANT $BUILDOS"
WORKDIR /w/$a
WORKDIR relative/$b
COPY --chmod=600 <<A <<"B" /docs/
$a
A
$a
B
EXPOSE 80 8000-8002/udp $a
VOLUME ["/v1", "/v 2"]
VOLUME /v3 /v4
USER $a:2
STOPSIGNAL SIGUSR1
HEALTHCHECK --interval=1m --timeout=2s --start-period=3s --start-interval=4s --retries=5 CMD ["probe", "x"]
ENTRYPOINT ["entry"]
CMD exec form is not this
FROM first
HEALTHCHECK NONE
ONBUILD LABEL later=$a
`})
	c := img.Config.Config
	labels := map[string]string{
		"unset": "default", "empty": "x", "set": "yes", "notset": "", "prefix": "usr/local/lib/x.tar.gz", "longprefix": "x.tar.gz", "suffix": "/usr/local/lib/x.tar",
		"longsuffix": "/usr/local/lib/x", "first": "/usr/Local/lib/x.tar.gz", "all": "/usr/LocaL/Lib/x.tar.gz", "quoted key": "quoted value", "escaped": "$a",
		"platform": "", "platforms": "linux/arm/v7 arm v7 linux",
	}
	if !maps.Equal(c.Labels, labels) {
		t.Errorf("labels = %q\nwant     %q", c.Labels, labels)
	}
	env := []string{defaultPath, "a=1", "b=two words", "c=three words", "d=$a", "e=five", "f=six", "old=style value"}
	if !slices.Equal(c.Env, env) {
		t.Errorf("environment = %q\nwant          %q", c.Env, env)
	}
	if got := sorted(c.ExposedPorts); !slices.Equal(got, []string{"1/tcp", "80/tcp", "8000/udp", "8001/udp", "8002/udp"}) {
		t.Errorf("ports = %q", got)
	}
	if got := sorted(c.Volumes); !slices.Equal(got, []string{"/v 2", "/v1", "/v3", "/v4"}) {
		t.Errorf("volumes = %q", got)
	}
	if c.User != "1:2" || c.WorkingDir != "/w/1/relative/two words" || c.StopSignal != "SIGUSR1" || !slices.Equal(c.Entrypoint, []string{"entry"}) ||
		!slices.Equal(c.Cmd, []string{"/bin/sh", "-c", "exec form is not this"}) || !slices.Equal(c.OnBuild, []string{"LABEL later=$a"}) || !slices.Equal(c.Healthcheck.Test, []string{"NONE"}) {
		t.Errorf("configuration = %+v", c)
	}
	if img.Config.Architecture != "arm" || img.Config.Variant != "v7" {
		t.Errorf("platform = %+v", img.Config.Platform)
	}
	b.has(img, files{"docs/A": "1\n", "docs/B": "$a\n"})
	if !strings.Contains(out, "[WARNING]: Empty continuation line") {
		t.Errorf("no warning of the empty line in a continuation:\n%s", out)
	}
	first, _ := b.mustBuild(Options{}, files{"Dockerfile": "FROM scratch\nHEALTHCHECK --interval=1m --start-interval=4s --retries=5 CMD probe\n"})
	if h := first.Config.Config.Healthcheck; h.Interval != time.Minute || h.StartInterval != 4*time.Second || h.Retries != 5 || !slices.Equal(h.Test, []string{"CMD-SHELL", "probe"}) {
		t.Errorf("health check = %+v", h)
	}
}
