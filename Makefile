# `make demo` shows Fanfare at work, `make test` checks all of it; `make help` lists the rest.
#
# Everything is built with the one profile `release` into one directory that outlives checkouts. RocksDB's C++, which takes minutes
# to compile, lies beside it: .ci/rocksdb makes it once for all checkouts, and .ci/cargo has it linked.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build demo check test bench parts profile guard guard-keep compare install uninstall

# `make build && sudo make install` compiles nothing as root. sudo takes CARGO_TARGET_DIR out of the environment, so `make build`
# notes in the checkout where it has built; without the note the home of the user who called sudo is looked at.
BUILT ?= .built
HOME_OF_CALLER := $(if $(SUDO_USER),$(shell getent passwd $(SUDO_USER) | cut -d: -f6),$(HOME))
NOTED := $(if $(filter install,$(MAKECMDGOALS)),$(shell cat $(BUILT) 2>/dev/null))
export CARGO_TARGET_DIR ?= $(or $(NOTED),$(HOME_OF_CALLER)/.cache/fanfare/target)
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

PREFIX ?= /usr/local
DESTDIR ?=
RELEASE := $(CARGO_TARGET_DIR)/release

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

build: ## build the daemon, the mock push service and the load generator
	@.ci/packages
	.ci/cargo build --release --workspace
	@echo "$(abspath $(CARGO_TARGET_DIR))" >$(BUILT)

demo: build ## build, then run a campaign through a real daemon to a mock push service
	$(RELEASE)/fanfare-load demo

# Cargo's own directory of compiled libraries is that of a release: only our own code is compiled anew.
check: ## the quick loop: format, lints and unit tests of the code as it is, in a minute (ONLY=outcome: the tests of that name)
	cargo fmt --all --check
	.ci/cargo clippy --release --workspace --lib --bins --tests -- -D warnings
	.ci/cargo nextest run --config .cargo/quick.toml --release --workspace --lib $(ONLY)

test: ## everything that CI checks
	@.ci/packages test
	cargo fmt --all --check
	cargo deny --log-level error check bans licenses sources
	.ci/cargo clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" .ci/cargo doc --release --workspace --no-deps
	.ci/cargo bench --workspace --bench '*' --no-run
	$(GUARD)
	.ci/cargo test --release --workspace --doc
	@if [ -x fuzz/run ]; then echo "fuzz/run 20"; fuzz/run 20; fi
	.ci/cargo build --release --workspace --bins
	.ci/cargo nextest run --release --workspace

bench: build ## measure the daemon in five minutes (QUICK=1: in two or three), and write a page with plots
	$(RELEASE)/fanfare-load bench $(if $(QUICK),--quick) --out $(CARGO_TARGET_DIR)/bench \
	    --commit "$$(git describe --always --dirty 2>/dev/null || true)"

parts: ## measure the parts: sealing, committing, scheduling
	@.ci/packages
	.ci/cargo bench --workspace --bench '*'

profile: build ## where the daemon's CPU time goes, by thread, and what locks cost (PROFILE="campaign --sink": another scenario)
	@.ci/packages profile
	@loadtest/profile.py --binaries $(RELEASE) $(or $(PROFILE),one-to-one --sink --messages 1000000)

# Compiled as a release is, whatever the environment says: incremental code is other code.
GUARD := CARGO_INCREMENTAL=0 .ci/cargo bench --bench guard

guard: ## count the instructions of parsing, sealing, posting and settling; fails where they are more than is kept
	@.ci/packages guard
	$(GUARD)

guard-keep: ## keep what is counted now as what the guard compares with
	@.ci/packages guard
	$(GUARD) -- --keep

compare: build ## the same work through Fanfare and through other senders
	@.ci/packages compare
	@loadtest/compare/install $(CARGO_TARGET_DIR)/compare
	@$(CARGO_TARGET_DIR)/compare/python/bin/python loadtest/compare/compare.py \
	    --binaries $(RELEASE) --installed $(CARGO_TARGET_DIR)/compare $(COMPARE)

# What lies below $(DESTDIR)$(PREFIX) of Fanfare and nothing else.
DOCUMENTATION := $(DESTDIR)$(PREFIX)/share/doc/fanfare
INSTALLED = $(addprefix $(DESTDIR)$(PREFIX)/,bin/fanfare bin/fanfare-mock lib/systemd/system/fanfare.service \
    lib/systemd/system/fanfare.socket lib/sysusers.d/fanfare.conf lib/tmpfiles.d/fanfare.conf)

install: ## install into $(PREFIX): programs, units, documentation (after `make build`, as root)
	@test -x $(RELEASE)/fanfare || { \
	    echo "There is no $(RELEASE)/fanfare: run \`make build\` first, not as root."; \
	    echo "If it was built elsewhere: sudo make install CARGO_TARGET_DIR=DIRECTORY"; \
	    exit 1; \
	}
	install -d $(DESTDIR)$(PREFIX)/bin $(DOCUMENTATION)/docs $(DESTDIR)$(PREFIX)/lib/systemd/system \
	    $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(PREFIX)/lib/tmpfiles.d
	@# Debug information is three quarters of a program. Names of functions stay, for backtraces.
	install -m 755 $(RELEASE)/fanfare $(RELEASE)/fanfare-mock $(DESTDIR)$(PREFIX)/bin/
	strip --strip-debug $(DESTDIR)$(PREFIX)/bin/fanfare $(DESTDIR)$(PREFIX)/bin/fanfare-mock
	install -m 644 README.md CHANGELOG.md SECURITY.md LICENSE-MIT LICENSE-APACHE $(wildcard config/fanfare.toml) \
	    $(DOCUMENTATION)/
	install -m 644 docs/*.md $(DOCUMENTATION)/docs/
	install -m 644 systemd/fanfare.service systemd/fanfare.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/
	sed -i 's#/usr/local/#$(PREFIX)/#' $(DESTDIR)$(PREFIX)/lib/systemd/system/fanfare.service \
	    $(DESTDIR)$(PREFIX)/lib/systemd/system/fanfare.socket
	install -m 644 systemd/sysusers.d/fanfare.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/
	install -m 644 systemd/tmpfiles.d/fanfare.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/
	@echo "The same programs with debug information stay in $(RELEASE)."
	@echo "Next: $(PREFIX)/bin/fanfare setup --subject mailto:you@example.com"

uninstall: ## remove what `make install` has installed; configuration, keys and data stay (as root)
	@if [ -z "$(DESTDIR)" ] && systemctl is-active --quiet fanfare.service fanfare.socket 2>/dev/null; then \
	    echo "Fanfare is running: systemctl disable --now fanfare.service fanfare.socket"; exit 1; \
	fi
	rm -f $(INSTALLED)
	rm -rf $(DOCUMENTATION)
	@echo "These stay: /etc/fanfare (configuration and keys), /var/lib/fanfare (data), the user \`fanfare\`, and units in"
	@echo "/etc/systemd/system. Without the keys every subscription is lost; to remove all of it nevertheless:"
	@echo "    rm -r /etc/fanfare /var/lib/fanfare /etc/systemd/system/fanfare.service*; userdel fanfare; systemctl daemon-reload"
