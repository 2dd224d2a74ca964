package plan

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/supervisor/model"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func service(name string, change ...func(*model.Spec)) model.Spec {
	s := model.Spec{
		App: 1, Service: name, Name: name + "_1_1_new", Image: name + ":2", Running: true,
		Print: "Cmd=1", Strategy: model.DownloadThenKill, HandOver: time.Minute,
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

func after(name string, cond model.Condition) func(*model.Spec) {
	return func(s *model.Spec) {
		s.DependsOn = append(s.DependsOn, model.Dependency{Service: name, Condition: cond})
	}
}

func strategy(st model.Strategy) func(*model.Spec) { return func(s *model.Spec) { s.Strategy = st } }

func application(services ...model.Spec) Want {
	return Want{Apps: []model.AppSpec{{ID: 1, UUID: "u", Commit: "new", Services: services}}}
}

func has(containers ...Container) Current {
	return Current{
		Containers: containers, Images: map[string]string{"web:2": "sha256:web2", "db:2": "sha256:db2"},
		Networks: []Network{{Name: model.SupervisorNetwork, Right: true}},
	}
}

func running(name string, change ...func(*Container)) Container {
	c := Container{
		ID: name + "-id", Name: name + "_1_1_new", App: 1, Service: name, ImageID: "sha256:" + name + "2",
		State: "running", Started: true, Print: "Cmd=1", Created: epoch,
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func without(cur Current, image string) Current {
	cur.Images = maps.Clone(cur.Images)
	delete(cur.Images, image)
	return cur
}

// brief is a step without its reasons.
func brief(steps []Step) []string {
	out := []string{}
	for _, s := range steps {
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s%s", s.Kind, s.Service, s.Object)))
	}
	return out
}

func TestNext(t *testing.T) {
	old := func(c *Container) { c.Print, c.Name = "Cmd=0", "web_1_1_old" }
	made := func(c *Container) { c.State, c.Started = "created", false }
	reboots := func(s *model.Spec) { s.Reboots = true }
	held := Facts{Locked: map[model.AppID]bool{1: true}, KeepVolumes: true}
	rested := Facts{Locked: held.Locked, Rested: map[string]bool{"1/web": true}, KeepVolumes: true}
	tests := []struct {
		name string
		want Want
		cur  Current
		f    Facts
		out  []string
	}{
		{"nothing-to-do", application(service("web")), has(running("web")), Facts{}, []string{}},
		{"missing-image-is-fetched", application(service("web")), without(has(), "web:2"), Facts{},
			[]string{"fetch webweb:2", "wait web"}},
		{"fetch-in-flight-is-not-repeated", application(service("web")), without(has(), "web:2"), Facts{Fetching: map[string]bool{"web:2": true}},
			[]string{"wait web", "wait web"}},
		{"start-needs-the-lock", application(service("web")), has(), Facts{}, []string{"take lock"}},
		{"start-with-the-lock", application(service("web")), has(), held, []string{"start web"}},
		{"lock-is-given-back", application(service("web")), has(running("web")), held, []string{"release lock"}},
		{"lock-is-given-back-while-waiting", application(service("web", after("db", model.Healthy)), service("db")),
			has(running("db", func(c *Container) { c.Health = "starting" })), held, []string{"wait web", "release lock"}},
		{"old-runs-while-new-image-comes", application(service("web")), without(has(running("web", old)), "web:2"), Facts{},
			[]string{"fetch webweb:2"}},
		{"all-images-before-any-kill", application(service("web"), service("db")), without(has(running("web", old)), "db:2"), held,
			[]string{"fetch dbdb:2", "wait db"}},
		{"kill-then-download-kills-first", application(service("web", strategy(model.KillThenDownload))), without(has(running("web", old)), "web:2"), held,
			[]string{"kill web"}},
		{"changed-service-is-killed", application(service("web")), has(running("web", old)), held, []string{"kill web"}},
		{"only-the-changed-service", application(service("web"), service("db")), has(running("web", old), running("db")), held, []string{"kill web"}},
		{"same-configuration-is-renamed", application(service("web")), has(running("web", func(c *Container) { c.Name = "web_1_1_old" })), held,
			[]string{"rename web"}},
		{"rename-waits-for-all-images", application(service("web"), service("db")),
			without(has(running("web", func(c *Container) { c.Name = "web_1_1_old" })), "db:2"), held, []string{"fetch dbdb:2", "wait db"}},
		{"depends-on-starts-later", application(service("web", after("db", model.Started)), service("db")), has(), held,
			[]string{"wait web", "start db"}},
		{"exited-dependency-counts-as-started", application(service("web", after("db", model.Started)), service("db")),
			has(running("db", func(c *Container) { c.State = "exited" })), held, []string{"start web"}},
		{"unhealthy-dependency-waits", application(service("web", after("db", model.Healthy)), service("db")),
			has(running("db", func(c *Container) { c.Health = "starting" })), Facts{}, []string{"wait web"}},
		{"healthy-dependency-starts", application(service("web", after("db", model.Healthy)), service("db")),
			has(running("db", func(c *Container) { c.Health = "healthy" })), held, []string{"start web"}},
		{"failed-dependency-waits", application(service("web", after("db", model.Completed)), service("db")),
			has(running("db", func(c *Container) { c.State, c.ExitCode = "exited", 1 })), Facts{}, []string{"wait web"}},
		{"completed-dependency-starts", application(service("web", after("db", model.Completed)), service("db")),
			has(running("db", func(c *Container) { c.State = "exited" })), held, []string{"start web"}},
		{"dependents-die-first", application(service("web", after("db", model.Started)), service("db")),
			has(running("web", old), running("db", old)), held, []string{"kill web"}},
		{"not-running-is-stopped", application(service("web", func(s *model.Spec) { s.Running = false })), has(running("web")), held, []string{"stop web"}},
		{"not-running-is-created", application(service("web", func(s *model.Spec) { s.Running = false })), has(), held, []string{"create web"}},
		{"person-stopped-stays-stopped", Want{Apps: application(service("web")).Apps, Stopped: map[string]bool{"1/web": true}},
			has(running("web", func(c *Container) { c.State = "exited" })), Facts{}, []string{}},
		{"person-stopped-is-stopped-again-after-boot", Want{Apps: application(service("web")).Apps, Stopped: map[string]bool{"1/web": true}},
			has(running("web")), held, []string{"stop web"}},
		{"exited-is-left-alone", application(service("web")), has(running("web", func(c *Container) { c.State = "exited" })), Facts{}, []string{}},
		{"exited-is-started-when-a-target-kept-it-from-running", application(service("web")), has(running("web", func(c *Container) { c.State = "exited" })), rested,
			[]string{"start web"}},
		{"person-stopped-stays-stopped-whatever-a-target-did", Want{Apps: application(service("web")).Apps, Stopped: map[string]bool{"1/web": true}},
			has(running("web", func(c *Container) { c.State = "exited" })), Facts{Rested: rested.Rested}, []string{}},
		{"what-rested-is-no-started-dependency", application(service("db", after("web", model.Started)), service("web")),
			has(running("web", func(c *Container) { c.State = "exited" })), rested, []string{"wait db", "start web"}},
		{"made-and-not-started-before-a-reboot", application(service("web", reboots)), has(), held, []string{"create web"}},
		{"a-reboot-is-asked-for-without-the-lock", application(service("web", reboots), service("db", after("web", model.Started))),
			has(running("web", made)), Facts{Locked: held.Locked, New: map[string]bool{"1/web": true}}, []string{"reboot web", "wait db", "release lock"}},
		{"started-after-a-reboot", application(service("web", reboots)), has(running("web", made)), held, []string{"start web"}},
		{"a-person-waits-for-no-reboot", application(service("web", reboots)), has(), Facts{Locked: held.Locked, Asked: true}, []string{"start web"}},
		{"no-hand-over-before-a-reboot", application(service("web", reboots, strategy(model.HandOver))), has(running("web", old)), held, []string{"kill web"}},
		{"created-is-started", application(service("web")), has(running("web", func(c *Container) { c.State = "created" })), held, []string{"start web"}},
		{"dead-is-removed", application(service("web")), has(running("web", func(c *Container) { c.State = "dead" })), held, []string{"kill web"}},
		{"foreign-container-is-replaced", application(service("web")), has(running("web", func(c *Container) { c.Print = "" })), held, []string{"kill web"}},
		{"unwanted-service-goes", application(service("web")), has(running("web"), running("db")), held, []string{"kill db"}},
		{"unwanted-app-goes", Want{}, has(running("web")), held, []string{"kill web"}},
		{"hand-over-steps-aside", application(service("web", strategy(model.HandOver))), has(running("web", old)), held, []string{"step aside web"}},
		{"hand-over-honours-locks", application(service("web", strategy(model.HandOver))), has(running("web", old)), Facts{}, []string{"take lock"}},
		{"hand-over-starts-beside", application(service("web", strategy(model.HandOver))), has(outgoing()), held, []string{"start web"}},
		{"hand-over-waits", application(service("web", strategy(model.HandOver))), has(outgoing(), running("web")), held, []string{"wait web"}},
		{"hand-over-ends-on-healthy", application(service("web", strategy(model.HandOver))),
			has(outgoing(), running("web", func(c *Container) { c.Health = "healthy" })), held, []string{"kill web"}},
		{"hand-over-ends-when-told", application(service("web", strategy(model.HandOver))), has(outgoing(), running("web")),
			Facts{Locked: map[model.AppID]bool{1: true}, HandedOver: map[string]bool{"web-old": true}}, []string{"kill web"}},
		{"supervisor-network-comes-first", application(service("web")), Current{}, Facts{}, []string{"ensure supervisor network supervisor0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Next(tt.want, tt.cur, tt.f)
			if b := brief(got); !reflect.DeepEqual(b, tt.out) {
				t.Errorf("Next = %q, want %q\nsteps: %v", b, tt.out, got)
			}
		})
	}
}

func outgoing() Container {
	return running("web", func(c *Container) {
		c.ID, c.Name, c.Print, c.Created = "web-old", model.OldPrefix+"web_1_1_old", "Cmd=0", epoch.Add(-time.Hour)
	})
}

func TestVolumesOfTheApplicationStayUnlessToldOtherwise(t *testing.T) {
	cur := has()
	cur.Volumes = []Volume{{Name: "1_data", App: 1, Driver: "local"}}
	if got := Next(Want{}, cur, Facts{KeepVolumes: true}); len(got) != 0 {
		t.Errorf("Next(nothing wanted, keep) = %v, want no steps", got)
	}
	if got := brief(Next(Want{}, cur, Facts{})); !slices.Equal(got, []string{"remove volume 1_data"}) {
		t.Errorf("Next(nothing wanted) = %v, want the volume removed", got)
	}
}

// A world is an engine without an engine: what steps do to Current.
type world struct {
	t     *testing.T
	cur   Current
	facts Facts
	next  int
	now   time.Time
}

func (w *world) do(want Want, s Step) {
	w.next++
	w.now = w.now.Add(time.Second)
	find := func() int {
		return slices.IndexFunc(w.cur.Containers, func(c Container) bool { return c.ID == s.Container })
	}
	var app model.AppSpec
	for _, a := range want.Apps {
		if a.ID == s.App {
			app = a
		}
	}
	var spec model.Spec
	for _, x := range app.Services {
		if x.Service == s.Service {
			spec = x
		}
	}
	switch s.Kind {
	case EnsureAPINetwork:
		w.cur.Networks = append(w.cur.Networks, Network{Name: model.SupervisorNetwork, Right: true})
	case CreateNetwork:
		for _, n := range app.Networks {
			if n.Name == s.Object {
				w.cur.Networks = append(w.cur.Networks, Network{Name: n.Name, App: s.App, Print: n.Print})
			}
		}
	case RemoveNetwork:
		w.mustBeUnused(s.Object)
		w.cur.Networks = slices.DeleteFunc(w.cur.Networks, func(n Network) bool { return n.Name == s.Object })
	case CreateVolume:
		for _, v := range app.Volumes {
			if v.Name == s.Object {
				w.cur.Volumes = append(w.cur.Volumes, Volume{Name: v.Name, App: s.App, Driver: v.Driver, Options: v.Options, Labels: v.Labels})
			}
		}
	case RemoveVolume:
		w.mustBeUnused(s.Object)
		w.cur.Volumes = slices.DeleteFunc(w.cur.Volumes, func(v Volume) bool { return v.Name == s.Object })
	case Fetch:
		w.cur.Images[s.Object] = "sha256:" + s.Object
	case TakeLock:
		w.facts.Locked[s.App] = true
	case ReleaseLock:
		delete(w.facts.Locked, s.App)
	case Kill:
		w.mustHoldLock(s)
		w.cur.Containers = slices.Delete(w.cur.Containers, find(), find()+1)
	case Stop:
		w.mustHoldLock(s)
		w.cur.Containers[find()].State = "exited"
		w.facts.Rested[ServiceKey(s.App, s.Service)] = true
	case Create, Start:
		w.mustHoldLock(s)
		w.start(app, spec, s)
	case Rename, StepAside:
		w.mustHoldLock(s)
		w.cur.Containers[find()].Name = s.Name
	case Reboot:
		clear(w.facts.New)
	case Wait:
	default:
		w.t.Fatalf("unknown step %v", s)
	}
}

func (w *world) start(app model.AppSpec, spec model.Spec, s Step) {
	for _, x := range app.Services {
		if w.cur.Images[x.Image] == "" {
			w.t.Errorf("%v although %s is not downloaded", s, x.Image)
		}
	}
	i := slices.IndexFunc(w.cur.Containers, func(c Container) bool { return c.ID == s.Container })
	if s.Container == "" {
		for _, c := range w.cur.Containers {
			if c.Name == spec.Name {
				w.t.Errorf("%v although the name %s is taken", s, spec.Name)
			}
		}
		c := Container{
			ID: fmt.Sprint("c", w.next), Name: spec.Name, App: app.ID, Service: spec.Service, ImageID: w.cur.Images[spec.Image],
			State: "created", Print: spec.Print, Networks: spec.Networks, Volumes: spec.Volumes, Created: w.now,
		}
		w.cur.Containers = append(w.cur.Containers, c)
		i = len(w.cur.Containers) - 1
	}
	if s.Kind == Create {
		w.facts.New[ServiceKey(s.App, s.Service)] = spec.Reboots
		return
	}
	if w.facts.New[ServiceKey(s.App, s.Service)] && spec.Reboots {
		w.t.Errorf("%v before a reboot", s)
	}
	for _, d := range spec.DependsOn {
		ok := slices.ContainsFunc(w.cur.Containers, func(c Container) bool {
			return c.Service == d.Service && c.Started && (d.Condition != model.Healthy || c.Health == "healthy")
		})
		if !ok {
			w.t.Errorf("%v although %s is not %s", s, d.Service, d.Condition)
		}
	}
	w.cur.Containers[i].State, w.cur.Containers[i].Started = "running", true
	delete(w.facts.Rested, ServiceKey(s.App, s.Service))
}

func (w *world) mustHoldLock(s Step) {
	if !w.facts.Locked[s.App] {
		w.t.Errorf("%v without the update lock", s)
	}
}

func (w *world) mustBeUnused(object string) {
	for _, c := range w.cur.Containers {
		if slices.Contains(c.Networks, object) || slices.Contains(c.Volumes, object) {
			w.t.Errorf("remove %s although %s uses it", object, c.Name)
		}
	}
}

// pass lets time go by: health checks succeed, hand-overs complete.
func (w *world) pass() {
	for i := range w.cur.Containers {
		c := &w.cur.Containers[i]
		if c.Runs() {
			c.Health = "healthy"
		}
		if c.Old() {
			w.facts.HandedOver[c.ID] = true
		}
	}
}

func randomWant(r *rand.Rand) Want {
	var want Want
	for id := range r.IntN(2) + 1 {
		app := model.AppSpec{ID: model.AppID(id + 1), UUID: fmt.Sprint("u", id), Commit: fmt.Sprint("c", r.IntN(2))}
		for _, n := range []string{"default", "inner"} {
			if r.IntN(3) > 0 {
				app.Networks = append(app.Networks, model.NetworkSpec{Name: app.UUID + "_" + n, Print: model.Fingerprint(fmt.Sprint("I=", r.IntN(2)))})
			}
		}
		if r.IntN(2) == 0 {
			app.Volumes = append(app.Volumes, model.VolumeSpec{Name: fmt.Sprint(app.ID, "_data"), Driver: []string{"local", "nfs"}[r.IntN(2)]})
		}
		for i := range r.IntN(4) {
			s := model.Spec{
				App: app.ID, Service: fmt.Sprint("s", i), Name: fmt.Sprintf("s%d_%d_1_%s", i, app.ID, app.Commit),
				Image: fmt.Sprint("image:", r.IntN(3)), Running: r.IntN(6) > 0, Print: model.Fingerprint(fmt.Sprint("Cmd=", r.IntN(2))),
				Strategy: []model.Strategy{model.DownloadThenKill, model.KillThenDownload, model.DeleteThenDownload, model.HandOver}[r.IntN(4)],
			}
			for j := range i {
				if r.IntN(3) == 0 && app.Services[j].Running {
					s.DependsOn = append(s.DependsOn, model.Dependency{Service: fmt.Sprint("s", j), Condition: []model.Condition{model.Started, model.Healthy}[r.IntN(2)]})
				}
			}
			s.Running = s.Running || i == 0
			s.Reboots = r.IntN(6) == 0
			for _, n := range app.Networks {
				if r.IntN(2) == 0 {
					s.Networks = append(s.Networks, n.Name)
				}
			}
			for _, v := range app.Volumes {
				if r.IntN(2) == 0 {
					s.Volumes = append(s.Volumes, v.Name)
				}
			}
			app.Services = append(app.Services, s)
		}
		want.Apps = append(want.Apps, app)
	}
	return want
}

// converges runs the plan against the world until it has no steps.
func (w *world) converge(want Want) {
	for range 60 {
		steps := Next(want, w.cur, w.facts)
		if !reflect.DeepEqual(steps, Next(want, w.cur, w.facts)) {
			w.t.Fatalf("Next gives other steps for the same input")
		}
		if len(steps) == 0 {
			return
		}
		w.pass()
		for _, s := range steps {
			w.do(want, s)
		}
	}
	w.t.Fatalf("not converged: %v\nwant %+v\nhave %+v", Next(want, w.cur, w.facts), want, w.cur)
}

func (w *world) check(want Want) {
	wanted := 0
	for _, app := range want.Apps {
		for _, s := range app.Services {
			wanted++
			i := slices.IndexFunc(w.cur.Containers, func(c Container) bool { return c.Name == s.Name && c.App == app.ID })
			if i < 0 {
				w.t.Fatalf("converged without %s", s.Name)
			}
			c := w.cur.Containers[i]
			if c.Print != s.Print || c.ImageID != w.cur.Images[s.Image] || s.Running != c.Runs() {
				w.t.Errorf("converged with %+v for %+v", c, s)
			}
		}
	}
	if len(w.cur.Containers) != wanted {
		w.t.Errorf("converged with %d containers, want %d", len(w.cur.Containers), wanted)
	}
	if len(w.facts.Locked) != 0 {
		w.t.Errorf("converged with locks held: %v", w.facts.Locked)
	}
}

func TestPlansConvergeAndKeepTheRules(t *testing.T) {
	for seed := range uint64(400) {
		t.Run(fmt.Sprint("seed-", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			w := &world{t: t, now: epoch, cur: Current{Images: map[string]string{}},
				facts: Facts{Locked: map[model.AppID]bool{}, HandedOver: map[string]bool{}, Rested: map[string]bool{}, New: map[string]bool{}, KeepVolumes: r.IntN(2) == 0}}
			for range 4 { // one target after the other, on what the last one left
				want := randomWant(r)
				w.converge(want)
				w.check(want)
			}
		})
	}
}

func TestPlansSurviveBeingInterrupted(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		w := &world{t: t, now: epoch, cur: Current{Images: map[string]string{}},
			facts: Facts{Locked: map[model.AppID]bool{}, HandedOver: map[string]bool{}, Rested: map[string]bool{}, New: map[string]bool{}, KeepVolumes: true}}
		for range 5 {
			want := randomWant(r)
			for range r.IntN(6) { // some rounds, then another target, or a crash
				for _, s := range Next(want, w.cur, w.facts) {
					if r.IntN(4) > 0 {
						w.do(want, s)
					}
				}
			}
			clear(w.facts.Locked)
		}
		want := randomWant(r)
		w.converge(want)
		w.check(want)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
