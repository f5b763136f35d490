# Every verb of the project. Whichever comes first on a fresh Debian 12 machine brings what it needs:
# Debian packages (installed when we may, else named), .venv, the compiled data plane. `make help` lists the verbs.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= $(shell nproc)
# Of the tests: one more than cores, since each also waits for the disk and for processes.
WORKERS ?= $(shell expr $(JOBS) + 1)
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 1
CRASH_SECONDS ?= 3600
CRASH_SEED ?= 1
CRASH_STATES ?= 2000
CRASH_QEMU_EVERY ?= 1

# The tests start some thousand processes of Python: each would compile all that it imports if it might not keep it.
unexport PYTHONDONTWRITEBYTECODE

# What each verb needs of Debian; Python packages stand in pyproject.toml.
APT_BUILD := gcc libc6-dev make pkg-config liburing-dev libdeflate-dev libzstd-dev python3-dev python3-venv
APT_TEST := $(APT_BUILD) clang libclang-rt-14-dev llvm libcmocka-dev qemu-utils qemu-system-common sg3-utils e2fsprogs \
	qemu-system-x86 iproute2 git strace
APT_LINT := $(APT_BUILD) clang-format git
APT_GUEST := $(APT_TEST) fio seabios busybox-static fdisk kmod grub-common grub-pc-bin
APT_BENCH := $(APT_BUILD) qemu-system-common util-linux

SOURCES := pyproject.toml $(wildcard vstore/dataplane/*.c vstore/dataplane/*.h vstore/dataplane/build.py)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run demo test native-test guest-test package-test vubench-test crash-test crash lint format fuzz differential bench \
	build tools vubench clean apt-build apt-test apt-lint apt-guest apt-bench

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

define TRY
vstore is about to serve on this user's UNIX socket and on a port of 127.0.0.1 (it says which); Ctrl-C ends it.
In another terminal, try:

  .venv/bin/vstore image create disk0 1G
  .venv/bin/vstore target create vm0
  .venv/bin/vstore lun map vm0 0 disk0
  .venv/bin/vstore attach vm0           (prints the command line of your virtual machine monitor)

endef
export TRY

run: build ## start vstore for this user, and say what to try
	@echo "$$TRY"
	@exec $(BIN)/vstore serve

demo: build .venv/.test | apt-guest ## watch a Linux guest use a disk that vstore serves
	@$(BIN)/python -m tests.guest.demo

test: vubench native-test build .venv/.test .venv/.fuzz | apt-test ## the tests: Python, and C under ASan and UBSan
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal \
		--ignore=tests/guest --ignore=tests/crash --ignore=tests/test_packaging.py $(PYTEST)

native-test: | apt-test ## the C tests of the data plane, under ASan and UBSan
	@$(MAKE) --no-print-directory -j$(JOBS) -C tests/native check

guest-test: build .venv/.test | apt-guest ## a real Linux guest under QEMU
	$(BIN)/python -m pytest -q tests/guest $(PYTEST)

package-test: build .venv/.test ## the project as a wheel, a source distribution and an editable install
	$(BIN)/python -m pytest -q tests/test_packaging.py $(PYTEST)

vubench-test: vubench build .venv/.test | apt-test ## the load generator's verification and hostile cases
	$(BIN)/python -m pytest -q tests/vubench $(PYTEST)

crash-test: build .venv/.test | apt-test ## power fails at any write, or a call of the host does: 5,000 crash states
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal tests/crash $(PYTEST)

crash: build .venv/.test | apt-test ## the same for CRASH_SECONDS (3600) from CRASH_SEED (1), CRASH_STATES (2000) a trial
	@$(BIN)/python -m tests.crash --seconds $(CRASH_SECONDS) --seed $(CRASH_SEED) --seeds 1000000 \
		--states $(CRASH_STATES) --faults 5 --qemu-every $(CRASH_QEMU_EVERY) $(CRASH)

lint: build .venv/.test .venv/.lint | apt-lint ## ruff, mypy, import-linter, clang-format, shell syntax
	@.ci/lint

format: .venv/.lint | apt-lint ## put Python and C into shape
	$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .
	clang-format -i vstore/dataplane/*.[ch] tests/native/*.[ch] tests/fuzz/*.c tests/crash/*.c

fuzz: build .venv/.test .venv/.fuzz | apt-test ## each fuzzer for FUZZ_SECONDS (60) from FUZZ_SEED (1)
	@.ci/fuzz $(FUZZ_SECONDS) $(FUZZ_SEED)

differential: build .venv/.test | apt-test ## 20,000 random operations on random image chains, from FUZZ_SEED (1)
	@$(BIN)/python -m tests.copy_on_write --seed $(FUZZ_SEED)

bench: vubench build | apt-bench ## vstore against qemu-storage-daemon: a table, kept under tests/bench/results
	@$(BIN)/python -m tests.bench $(BENCH)

build: .venv/.run ## .venv with vstore and its compiled data plane

tools: build .venv/.test .venv/.lint .venv/.fuzz vubench | apt-guest apt-lint ## whatever any of these needs

vubench: | apt-build ## the independent load generator
	@$(MAKE) --no-print-directory -s -j$(JOBS) -C tests/vubench

clean: ## remove everything that was built, .venv too
	rm -rf .venv build dist *.egg-info vstore/dataplane/_native*.so
	$(MAKE) --no-print-directory -s -C tests/vubench clean

# .venv/.run has the program, and is built anew after any change of the C; the others add the extra of that name.
.venv/bin/python: | apt-build
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python $(SOURCES) | apt-build
	$(BIN)/pip install -q --disable-pip-version-check -e .
	@touch $@

EXTRA = import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$*"], sep="\n")
.venv/.%: .venv/bin/python pyproject.toml
	$(BIN)/python -c '$(EXTRA)' | $(BIN)/pip install -q --disable-pip-version-check -r /dev/stdin
	@touch $@

apt-build: ; @.ci/packages $(APT_BUILD)
apt-test: ; @.ci/packages $(APT_TEST)
apt-lint: ; @.ci/packages $(APT_LINT)
apt-guest: ; @.ci/packages $(APT_GUEST)
apt-bench: ; @.ci/packages $(APT_BENCH)
