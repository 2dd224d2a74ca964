# Targets a person types. Everything they need is installed by scripts/deps.

BIN     := bin
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-dev)
COMMIT  := $(shell git rev-parse --short HEAD 2>/dev/null)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

# What waits for the network, the kernel or a person is compiled without
# inlining: it is not slower that anyone could tell, and minked is 0.6 MB
# smaller. Whatever handles each byte or each file keeps it.
MINKE    := github.com/minke-os/minke
CALM     := net net/http crypto/tls $(MINKE)/supervisor/... $(MINKE)/engine $(MINKE)/engine/api \
	$(MINKE)/engine/archive $(MINKE)/engine/build/... $(MINKE)/engine/internal/... $(MINKE)/engine/registry \
	go.yaml.in/...
FLAGS    := -trimpath $(foreach p,$(CALM),-gcflags=$(p)=-l) -ldflags '$(LDFLAGS)'
GOBUILD  := CGO_ENABLED=0 go build $(FLAGS)

.PHONY: build cross demo demo-down test test-race test-apps test-powercut test-conformance test-idle soak test-vm bench bench-delta fuzz lint clean

build: ## static, stripped programs in bin/
	$(GOBUILD) -o $(BIN)/ ./cmd/...

cross: ## the same for every board; the CLI also for darwin and windows
	scripts/cross $(FLAGS)

demo: build ## put the example application on this machine
	scripts/demo up

demo-down: ## and take it away without a trace
	scripts/demo down

test: ## everything but what takes minutes
	scripts/deps test
	go vet ./...
	go test -json -timeout 9m ./... | go run ./internal/testlog

test-race:
	scripts/deps test
	go test -race -short -timeout 20m ./...

test-apps: ## servers from Debian in containers: nginx, mosquitto, dnsmasq; a minute or two
	scripts/deps apps
	MINKE_TEST_APPS=1 go test -count 1 -run TestRealServers -timeout 10m -v ./cmd/minked

test-powercut: ## a thousand power cuts of the image store, as many of updates by delta, and other file systems; minutes
	scripts/deps powercut
	MINKE_POWERCUT=1000 go test -count 1 -timeout 45m -v -run "PowerCut|Disk|Journal|Caught|OtherFile|Written" ./internal/powercut ./engine/store

test-conformance: ## the supervisor's acceptance suite, with a death at each request, and beside a stock Docker too; minutes
	scripts/deps conformance
	MINKE_TEST_DOCKER=1 go test -count 1 -timeout 20m -v ./supervisor/conformance

test-idle: ## what a device costs on which nothing changes; ten minutes
	scripts/deps test
	MINKE_TEST_IDLE=10m go test -count 1 -timeout 15m -v -run TestAnIdleDevice ./supervisor/conformance

soak: ## 500 containers at once, 10,000 one after the other
	scripts/deps test
	go test -run TestSoak -v -timeout 90m ./cmd/minked -soak

test-vm: ## what depends on control groups, on a kernel that has version 2 alone
	scripts/deps vm
	mkdir -p bin/vm
	go run ./internal/vmtest | go run ./internal/testlog

bench: build ## beside docker and podman where they are installed
	go run ./bench

bench-delta: ## deltas beside zstd, xdelta3 and bsdiff, then beside plain pulls
	go run ./bench deltas
	go run ./bench -rounds 3 pulls

fuzz: ## each fuzzer for ten seconds
	scripts/fuzz 10s

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo 'run gofmt -w on these'; exit 1; }
	go vet ./...

clean:
	rm -rf bin bench/out
