# SPDX-License-Identifier: BSD-3-Clause
#
# The front door. Targets install the distribution packages they lack (they say
# which, and use sudo if needed); set NO_DEPS=1 to leave the machine as it is.

# What test-kernel, shell and kernel-id are about.
KERNEL ?= 6.12
# Our reference series if it has a port for the kernel, else no series.
SERIES ?= $(or $(wildcard patches/$(KERNEL)),none)
CONFIG ?=
SUITE ?=
ACCEL ?=
# More flags for zcvet, as they are: FLAGS="--strict --seed 7"
FLAGS ?=

# For make test: TESTFLAGS="-short -run Scan", TESTPACKAGES=./harness/splat/...
TESTFLAGS ?=
TESTPACKAGES ?= ./...
FUZZTIME ?= 10s
BENCHTIME ?=

# For make matrix.
KERNELS ?=

ZCVET := bin/zcvet
SCRIPTS := .ci/run .ci/deps .ci/fuzz

deps = $(if $(NO_DEPS),,@.ci/deps $(1))
option = $(if $($(2)),--$(1) '$($(2))')
what = --kernel '$(KERNEL)' --series '$(SERIES)' $(call option,config,CONFIG) $(FLAGS)

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@echo 'usage: make TARGET [VARIABLE=value...]'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18
	@echo
	@echo 'variables: KERNEL=$(KERNEL) SERIES=$(SERIES) CONFIG SUITE ACCEL FLAGS'
	@echo '           TESTFLAGS TESTPACKAGES=$(TESTPACKAGES) FUZZTIME=$(FUZZTIME)'

.PHONY: test-kernel
test-kernel: $(ZCVET) ## vet a series on a kernel: KERNEL= SERIES= CONFIG= SUITE= ACCEL=
	$(call deps,run)
	$(ZCVET) run $(what) $(call option,suite,SUITE) $(call option,accel,ACCEL)

.PHONY: shell
shell: $(ZCVET) ## an interactive shell in that kernel
	$(call deps,run)
	$(ZCVET) shell $(what) $(call option,accel,ACCEL)

# The tests of single packages that need a kernel get the unpatched one, built
# first; TESTFLAGS=-short does without kernels and machines.
.PHONY: test
test: $(ZCVET) ## the project's own tests, those with virtual machines too
	$(call deps,test)
	go vet $(TESTPACKAGES)
	kernel=$(if $(filter -short,$(TESTFLAGS)),,$$($(ZCVET) build --series none)) && \
	ZCVET_TEST_KERNEL=$$kernel go test -race -timeout 60m $(TESTFLAGS) $(TESTPACKAGES)

# The kernels of these take many minutes to build the first time.
.PHONY: test-configs
test-configs: $(ZCVET) ## the tests that build kernels of other configurations and interfaces
	$(call deps,test)
	ZCVET_TEST_CONFIGS=1 go test -timeout 120m -count 1 -run 'TestCoverage|TestLeak|TestReferencePassesOnTheDebugKernel|TestOlderInterfaces|TestCheckFindsWhatCompilersFind' ./harness/cmd/zcvet

.PHONY: lint
lint: ## formatting, vet, staticcheck, shell scripts and workflows
	$(call deps,lint)
	@unformatted=$$(git ls-files --cached --others --exclude-standard '*.go' | xargs -r ls -d 2>/dev/null | xargs -r go tool gofumpt -l); \
	if [ -n "$$unformatted" ]; then echo "go tool gofumpt -w these:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	GOARCH=386 go vet ./guest/... # the agent of 32-bit cases
	go tool staticcheck ./...
	shellcheck $(SCRIPTS)
	go tool actionlint

.PHONY: bench-harness
bench-harness: ## measure the harness itself: build, boot, restore, cases per second
	$(call deps,run)
	go test -run '^$$' -bench . $(call option,benchtime,BENCHTIME) -timeout 60m ./harness/bench/...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME
	.ci/fuzz '$(FUZZTIME)'

.PHONY: build
build: $(ZCVET) ## bin/zcvet

# Go knows best whether it has to be built again. Without cgo, so that no C
# compiler is needed before the packages are there.
.PHONY: $(ZCVET)
$(ZCVET):
	@CGO_ENABLED=0 go build -trimpath -o $@ ./harness/cmd/zcvet

.PHONY: doctor
doctor: $(ZCVET) ## what this machine lacks, and what to do about it
	@$(ZCVET) doctor

.PHONY: deps
deps: ## install everything the targets need
	@.ci/deps run test lint

.PHONY: matrix
matrix: $(ZCVET) ## the kernel matrix for GitHub, as JSON: KERNELS= SERIES=
	@$(ZCVET) matrix --github $(call option,kernels,KERNELS) $(if $(filter command environment,$(firstword $(origin SERIES))),$(call option,series,SERIES))

.PHONY: kernel-id
kernel-id: $(ZCVET) ## the id of the kernel that test-kernel would build
	$(call deps,run)
	@$(ZCVET) run $(what) --kernel-id

.PHONY: summary
summary: ## the report of the last run, for a job summary
	@test ! -e results/latest/report.md || cat results/latest/report.md

.PHONY: kvm-permissions
kvm-permissions: ## let every user of this machine open /dev/kvm (for CI runners)
	@test -e /dev/kvm || { echo 'there is no /dev/kvm on this machine'; exit 7; }
	echo 'KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"' | sudo tee /etc/udev/rules.d/99-zcvet-kvm.rules
	sudo udevadm control --reload-rules
	sudo udevadm trigger --name-match=kvm --settle
	@test -w /dev/kvm || { echo '/dev/kvm is still not writable'; ls -l /dev/kvm; exit 7; }

.PHONY: clean
clean: ## remove what make built; the cache stays (zcvet cache prune)
	rm -rf bin
