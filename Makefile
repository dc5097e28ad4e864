# `make help` lists the targets. They work as root, or as a user with sudo for the
# packages; what a test cannot do without root it skips, and `make test` says so.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# sudo drops /usr/local/go/bin from PATH, and tests call go too.
ifndef GO
GO := $(shell command -v go || echo /usr/local/go/bin/go)
endif
export GO
export PATH := $(patsubst %/,%,$(dir $(GO))):$(PATH)
# What follows can be set on the command line, and not by the environment, where such names
# stand for other things.
MODULE := github.com/rbd-csi/rbd-csi
VERSION = $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS = -X main.version=$(VERSION)
# Where Go does not look for packages, whatever is unpacked there.
$(shell mkdir -p build && [ -e build/go.mod ] || echo 'module build.invalid' >build/go.mod)
# How long `make fuzz` tries each target.
FUZZTIME = 30s
# The release of `make test-ceph`: 18 or 20. `make test` uses the installed one.
CEPH = 20
# Which specs of Kubernetes' storage suite `make e2e` runs; empty: all.
FOCUS =
SKIP =
# How many nodes `make kube` has: each in a small virtual kernel with krbd, or, with none, this machine itself as the only one.
NODES =
# A root directory with another release of Ceph, in which to build and test.
ROOT =
INSIDE = $(if $(ROOT),build/ceph-folder in-root -root $(ROOT)) env CGO_ENABLED=1
# Compilers that use a processor each, one more of them than there are processors, and that collect garbage when they have three times
# what they need, take about a third less time than as the go command starts them. More garbage costs more than it saves: pages
# that are touched first are dear in a virtual machine.
SPARING = GOGC=200 GOMAXPROCS=1
# What only runs here needs nothing for debuggers: a tenth of a compiler's time.
BARE = CGO_ENABLED=0 GOFLAGS='$(strip $(GOFLAGS) -gcflags=all=-dwarf=false)'
AT_ONCE = -p $$(($$(nproc) + 1))
COMPILE = $(SPARING) $(INSIDE) $(GO) build $(AT_ONCE) -trimpath

# go-ceph has to be told by a build tag that librbd lacks calls which Ceph has since 18.
# librbd's header is asked, and not a version: it is what go-ceph is compiled against. Of
# the calls that go-ceph's tags leave out in its packages rbd and rados, those of 16 and
# of 17 are the same.
LIBRBD_MACROS = $(shell printf '\043include <rbd/librbd.h>\n\043include <rados/librados.h>\n' | $(or $(CC),gcc) $(if $(ROOT),--sysroot=$(ROOT)) -E -dM - 2>/dev/null)
LIBRBD_TAG = $(if $(findstring LIBRBD_VERSION_CODE,$(LIBRBD_MACROS)),$(if \
  $(findstring LIBRBD_SUPPORTS_ENCRYPTION_LOAD2,$(LIBRBD_MACROS)),,pacific),$(error \
  A C compiler and the headers of librbd and librados are needed: run `test/setup.sh build`, \
  or install gcc, librbd-dev and librados-dev (elsewhere than on Debian: librbd-devel and librados-devel)))
# Asked once, when first needed: a target's prerequisites may have just installed it.
TAG = $(eval TAG := $(LIBRBD_TAG))$(TAG)

# Packages that go-ceph or a real Ceph is needed for, by the imports of their tests. They
# are tested one after the other, because they share the machine's disk and loop devices.
# All others build and test without a C compiler.
REAL = $(eval REAL := $(shell CGO_ENABLED=1 $(GO) list -e -test -f \
  '{{range .Deps}}{{if or (eq . "github.com/ceph/go-ceph/rados") (eq . "$(MODULE)/test/ceph")}}{{$$.ImportPath}}{{"\n"}}{{end}}{{end}}' ./... \
  | sed -E 's/ \[.*//; s/_test$$//; s/\.test$$//' | sort -u) $(MODULE)/test/ceph)$(REAL)
# The tests in a kernel of their own have commands of their own.
KERNEL = $(MODULE)/test/kernel
PURE = $(eval PURE := $(filter-out $(REAL),$(shell CGO_ENABLED=1 $(GO) list -e ./...)))$(PURE)

# What tests and the demo run; a build for another release of Ceph goes elsewhere.
BINARY = build/rbd-csi
REPORT = CGO_ENABLED=0 $(GO) run ./test/report
TEST_PURE = CGO_ENABLED=0 $(GO) test -json -count=1 $(PURE)
TEST_KUBE = $(BARE) $(GO) -C test/kube test -json -count=1 -p 1 -timeout 40m \
  $(shell CGO_ENABLED=0 $(GO) -C test/kube list -e ./... | grep -v /nodes$$)
TEST_NODES = $(BARE) $(GO) -C test/kube test -json -count=1 -timeout 40m ./nodes
TEST_CHART = $(BARE) $(GO) -C test/chart test -json -count=1 ./...
TEST_REAL = $(INSIDE) RBD_CSI_BINARY=$(abspath $(BINARY)) \
  $(GO) test -json -count=1 -p 1 -timeout 30m -tags '$(TAG)' $(filter-out $(KERNEL),$(REAL))
TEST_KERNEL = CGO_ENABLED=0 RBD_CSI_BINARY=$(abspath $(BINARY)) $(GO) test -json -count=1 -timeout 20m $(KERNEL)
# What of them `make test` runs takes less than five minutes, with fetching the kernel. Ginkgo, which is in one of them,
# does not like -parallel.
KERNEL_PART = ^(TestReadResults|TestFindAnother|TestOutages|TestKRBD|TestKRBDFaults|TestTwoNodes)\$$

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo demo-down quick quick-down
demo: ## show a StatefulSet's life on a real Kubernetes and a real Ceph, and leave them running
	@$(MAKE) -j2 setup-kube build/demo
	@build/demo -version '$(VERSION)'
demo-down: build/demo ## take down what the demo left running
	@build/demo -down
quick: ## show the driver at work on a real Ceph without Kubernetes (three minutes on a fresh machine)
	@$(MAKE) -j2 setup-build quick-begun
	@$(MAKE) -j2 setup quick-parts
	@build/quick -binary $(BINARY)
# Packages are downloaded and unpacked on one processor while the other one compiles: first what needs no C compiler, then
# driver and demo, one after the other, because two compilers at once would both compile what the two share.
.PHONY: setup-build setup-kube quick-begun quick-parts
setup-build:
	@test/setup.sh build
setup-kube:
	@test/setup.sh kube
quick-begun:
	@$(COMPILE) $$(CGO_ENABLED=1 $(GO) list -deps -f \
	  '{{$$c := len .CgoFiles}}{{range .Deps}}{{if eq . "runtime/cgo"}}{{$$c = 1}}{{end}}{{end}}{{if not $$c}}{{.ImportPath}}{{end}}' ./cmd/rbd-csi ./test/demo)
quick-parts: build
	@$(MAKE) build/quick
quick-down: build/quick ## take down what a quick demo left that was killed
	@build/quick -down

.PHONY: test unit race real test-ceph kernel-test fio
test: setup build kernel-parts-if-possible ## run every test, on a real Ceph and as root too, and say what was skipped and why
	@$(REPORT) \
	  'units, fuzz seeds, layers, and csi-sanity in memory' "$(TEST_PURE)" \
	  'the Helm chart' "$(TEST_CHART)" \
	  'on a real Ceph, with real devices and mounts' "$(TEST_REAL)" \
	  'in a small virtual kernel' "$(TEST_KERNEL) -run '$(KERNEL_PART)'"
unit: ## run the tests that need neither Ceph nor a C compiler
	@$(REPORT) 'units, fuzz seeds, layers, and csi-sanity in memory' "$(TEST_PURE)"
race: setup ## run the same with Go's race detector
	@$(REPORT) 'units with the race detector' "CGO_ENABLED=1 $(GO) test -race -json -count=1 $(PURE)"
real: build ## run the others
	@$(REPORT) 'on a real Ceph, with real devices and mounts' "$(TEST_REAL)"
test-ceph: setup build/ceph-folder ## run those on another release, in a root of its own: CEPH=18 or CEPH=20
	@test/setup.sh image
	@test/ceph/root.sh $(CEPH)
	@$(MAKE) real ROOT=$(CURDIR)/build/ceph-roots/$(CEPH) BINARY=build/rbd-csi-ceph-$(CEPH)

kernel-test: setup build kernel-parts ## test krbd and nbd in a small virtual kernel, which is fetched from Debian once
	@$(REPORT) 'in a small virtual kernel' "$(TEST_KERNEL)"
fio: setup build kernel-parts ## have fio read and write volumes of each mapper in one virtual kernel, and the same by librbd alone
	@test/setup.sh fio
	@CGO_ENABLED=0 RBD_CSI_BINARY=$(abspath $(BINARY)) RBD_CSI_FIO=1 $(GO) test -count=1 -v -timeout 20m -run TestFio $(KERNEL)
.PHONY: kernel-parts kernel-parts-if-possible
kernel-parts:
	@test/setup.sh kernel
	@test/kernel/fetch.sh
# A machine that cannot says why here, and the tests say so once more when they are skipped.
kernel-parts-if-possible:
	@$(MAKE) kernel-parts || echo 'the tests in a small virtual kernel will be skipped'

.PHONY: ceph ceph-down
ceph: setup build/ceph-folder ## start a real Ceph in build/ceph and say how to use it
	@build/ceph-folder up
ceph-down: build/ceph-folder ## stop it and remove the folder
	@build/ceph-folder down

.PHONY: kube kube-down kube-parts kube-test kube-nodes-test e2e e2e-nodes
kube: kube-parts build/lab $(if $(NODES),kernel-parts) ## start Ceph, Kubernetes and the driver in its pods, and say how to look around; NODES=2: on nodes that can be lost
	@build/lab up $(if $(NODES),-guests $(NODES))
kube-down: build/lab ## take that down
	@build/lab down
kube-test: kube-parts ## test StatefulSets on that Kubernetes; it must not be up already
	@$(REPORT) 'StatefulSets on a real Kubernetes' "$(TEST_KUBE)"
kube-nodes-test: kube-parts kernel-parts ## test what becomes of StatefulSets whose nodes are killed, frozen and cut off, with krbd
	@$(REPORT) 'StatefulSets on nodes that are lost' "$(TEST_NODES)"
e2e: kube-test build/lab ## the same, and then Kubernetes' own storage suite (FOCUS and SKIP: regular expressions)
	@build/kube/kube build -suite
	@build/kube/kube images -suite
	@build/lab up
	@build/kube/kube e2e -testdriver test/kube/suite/testdriver.yaml $(if $(FOCUS),-focus '$(FOCUS)') $(if $(SKIP),-skip '$(SKIP)')
	@build/lab down
e2e-nodes: kube-parts kernel-parts build/lab ## the specs of that suite that want two nodes, on nodes in small virtual kernels with krbd
	@build/kube/kube build -suite
	@build/kube/kube images -suite
	@build/lab up -guests 2
	@build/kube/kube e2e -testdriver test/kube/suite/testdriver.yaml -focus 'recreation on different node' -procs 1
	@build/lab down
# Kubernetes takes ten minutes to build on two cores when nothing is in the caches, and then seconds.
kube-parts: build/kube/kube build/helm
	@test/setup.sh kube
	@build/kube/kube build
	@build/kube/kube images
	@$(MAKE) image

.PHONY: build image setup
build: ## build the binary, for the installed release of Ceph
	@echo 'building $(BINARY) $(VERSION), go-ceph with $(if $(TAG),the tag $(TAG),no tag)'
	@$(COMPILE) -tags '$(TAG)' -ldflags '$(LDFLAGS)' -o $(BINARY) ./cmd/rbd-csi
image: ## build the container image with buildah on a base made by debootstrap: RELEASE=forky or trixie
	@test/setup.sh image
	@VERSION='$(VERSION)' deploy/image.sh $(RELEASE)
setup: ## install the packages that are missing (Debian; root or sudo)
	@test/setup.sh test

.PHONY: check format vet lint kube-lint layers generate generated tidy
check: setup format vet lint layers generated tidy ## what CI runs beside the tests: format, vet, linters, layers, generated files, go.mod
format:
	@unformatted=$$(gofmt -l cmd pkg test); [ -z "$$unformatted" ] || { echo "gofmt wants to change:" $$unformatted; exit 1; }
vet:
	@CGO_ENABLED=0 $(GO) vet $(PURE)
	@CGO_ENABLED=1 $(GO) vet -tags '$(TAG)' $(REAL)
lint: build/golangci-lint ## run the linters of .golangci.yml
	@CGO_ENABLED=1 build/golangci-lint run --build-tags '$(TAG)' ./...
	@cd test/chart && $(BARE) ../../build/golangci-lint run --config ../../.golangci.yml ./...
kube-lint: build/golangci-lint ## run the linters on test/kube, which is made of most of Kubernetes: minutes
	@cd test/kube && $(BARE) ../../build/golangci-lint run --config ../../.golangci.yml ./...
layers: ## check who imports whom, and name large files
	@CGO_ENABLED=0 $(GO) test -count=1 -v ./test/layers | sed -n '/^ok\|^FAIL\|_test.go/p'
generate: ## make the generated files anew
	@CGO_ENABLED=0 $(GO) generate ./...
	@$(BARE) $(GO) -C test/chart generate ./...
generated:
	@before=$$(git diff | sha256sum); $(MAKE) generate; \
	  [ "$$before" = "$$(git diff | sha256sum)" ] || { echo "make generate changed files: commit them"; exit 1; }
tidy:
	@$(GO) mod tidy -diff
	@$(GO) -C test/chart mod tidy -diff
	@$(GO) -C test/kube mod tidy -diff

# The linters have a module of their own, so that go.mod lists what the driver needs.
build/golangci-lint: test/lint/go.mod test/lint/go.sum
	@echo "building the linters (two minutes on two cores, once)"
	@$(SPARING) $(BARE) $(GO) -C test/lint build $(AT_ONCE) -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# So has what renders the chart, and Helm, which installs it.
.PHONY: chart
chart: ## lint and render the Helm chart with values of every kind, and compare deploy/ with it
	@$(REPORT) 'the Helm chart' "$(TEST_CHART)"
build/helm: test/chart/go.mod test/chart/go.sum
	@echo "building helm (some minutes on two cores, once)"
	@$(SPARING) $(BARE) $(GO) -C test/chart build $(AT_ONCE) -ldflags '-s -w' -o $(CURDIR)/$@ helm.sh/helm/v4/cmd/helm

# The compiler knows best whether these are up to date.
.PHONY: build/demo build/quick build/ceph-folder build/bench build/lab build/kube/kube
build/demo:
	@[ -e $@ ] || echo 'building $@ (some minutes on two cores when the caches of Go are empty)'
	@$(SPARING) $(BARE) $(GO) -C test/kube build $(AT_ONCE) -o $(CURDIR)/$@ ./cmd/demo
build/quick: # as build does, so that what they share is compiled once
	@$(COMPILE) -tags '$(TAG)' -o $@ ./test/demo
build/lab:
	@[ -e $@ ] || echo 'building $@ (some minutes on two cores when the caches of Go are empty)'
	@$(SPARING) $(BARE) $(GO) -C test/kube build $(AT_ONCE) -o $(CURDIR)/$@ ./cmd/lab
build/kube/kube:
	@[ -e $@ ] || echo 'building $@ (some minutes on two cores when the caches of Go are empty)'
	@$(SPARING) $(BARE) $(GO) -C test/kube build $(AT_ONCE) -o $(CURDIR)/$@ ./cmd/kube
build/ceph-folder:
	@CGO_ENABLED=0 $(GO) build -o $@ ./test/ceph/cmd/ceph-folder
build/bench:
	@CGO_ENABLED=1 $(GO) build -tags '$(TAG)' -o $@ ./test/bench

.PHONY: fuzz crash faults bench budgets clean tag
fuzz: setup ## fuzz each target for FUZZTIME (30s)
	@grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' cmd pkg test | sed 's/:func / /' | while read -r file name; do \
	  echo "== $$(dirname $$file) $$name"; \
	  CGO_ENABLED=1 $(GO) test -tags '$(TAG)' ./$$(dirname $$file) -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) || exit 1; \
	done
crash: setup build ## kill -9 controllers and nodes at random moments while volumes, snapshots and clones are made, used and deleted
	@RBD_CSI_BINARY=$(abspath $(BINARY)) RBD_CSI_CRASH_STAGED=200 RBD_CSI_CRASH_COPIES=300 CGO_ENABLED=1 \
	  $(GO) test -count=1 -v -timeout 45m -tags '$(TAG)' -run TestKill ./test/crash
# The share of the matrix in percent, and after a colon the seed of its order: FAULTS=100:7.
FAULTS = 100
faults: setup build crash ## crash, and then freeze, kill and starve clients and daemons under volumes in use; print what was tried (FAULTS=PERCENT[:SEED])
	@RBD_CSI_BINARY=$(abspath $(BINARY)) RBD_CSI_FAULTS='$(FAULTS)' CGO_ENABLED=0 \
	  $(GO) test -count=1 -v -timeout 120m -parallel 3 -run 'TestFaults|TestSilentCluster' ./test/node
bench: setup build build/bench ## count RADOS operations for each request and measure rates, beside librbd's bare minimum
	@build/bench -binary $(BINARY)
budgets: setup build build/bench ## check the counted operations against their budgets
	@build/bench -binary $(BINARY) -budgets
clean: ceph-down ## remove what was built
	@findmnt -rno TARGET | grep -F '$(CURDIR)/build/' && { echo 'these are mounted, so build stays'; exit 1; } || rm -rf build
tag: ## print go-ceph's build tag for the installed librbd: go test -tags "$(make -s tag)" ...
	@echo '$(TAG)'
