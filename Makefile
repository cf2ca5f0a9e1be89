# `make demo` and `make test` get what they need, then do what they say. They share compiled dependencies.

export CARGO_TARGET_DIR ?= $(HOME)/.cache/cellql-target
STORE ?= demo/store
CARGO = set -e; PROTOC="$$(scripts/ensure-tools.sh)"; export PROTOC; cargo
# Always the whole workspace: another selection means other features of dependencies, and compiling them twice.
WHOLE = --workspace --locked

.PHONY: demo test fmt lint check build release data clean

demo: build
	rm -rf demo/store   # the demo's own place only: another STORE is the user's and never removed
	"$(CARGO_TARGET_DIR)/debug/cellql" demo "$(STORE)"

test: fmt lint data
	$(CARGO) test $(WHOLE)

fmt:
	cargo fmt --all --check

lint:
	$(CARGO) clippy $(WHOLE) --all-targets -- -D warnings

build:
	$(CARGO) build $(WHOLE)

release:
	$(CARGO) build $(WHOLE) --release

# Real data for the larger tests; without it they say that they are skipped.
data:
	scripts/fetch-test-data.sh || echo "test data could not be fetched; tests that need it are skipped" >&2

clean:
	rm -rf "$(CARGO_TARGET_DIR)" demo/store
