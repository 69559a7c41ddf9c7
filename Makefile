# Every target makes the environment it needs in .venv, from the package registry.
# It takes the versions in constraints.txt. `make constraints` refreshes that file.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Processes that run tests: more than cores, as many tests wait for processes that start.
TESTERS := $(shell $(PYTHON) -c 'import os; print(os.cpu_count() * 3 // 2)')
READY := .venv/.ready
SOURCES := pyproject.toml setup.py src/flashkat/ops/cpu/native.c src/flashkat/ops/cpu/native_real.h

BROWSER ?= chromium
DEMO := demo
# A KAT of 0.1 million parameters that learns 8 x 8 digits, enlarged to 16 x 16, in about a minute on two cores.
DEMO_TRAINING := --model kat_tiny_patch16_224 --img-size 16 \
	--model-kwargs patch_size=4 embed_dim=64 depth=2 num_heads=4 \
	--epochs 60 --batch-size 64 --opt adamw --lr 3e-3 --weight-decay 0.3 --warmup-epochs 5 \
	--scale 0.8 1 --ratio 0.9 1.1 --hflip 0 --color-jitter 0 --crop-pct 1 --workers 2

.PHONY: demo test test-slow test-gpu test-oldest test-newest test-wheel test-timm newest constraints lint words dist \
	docs docs-serve flags starts figures benchmarks benchmark-figures clean

# One thread computes: tensors this small gain nothing from a second one, and wait long for it on a busy machine.
demo: $(READY)
	rm -rf $(DEMO)
	$(BIN)/flashkat data digits $(DEMO)/digits
	OMP_NUM_THREADS=1 $(BIN)/flashkat train $(DEMO)/digits $(DEMO_TRAINING) --output $(DEMO) --experiment run
	$(BIN)/flashkat plot $(DEMO)/run/last.pth.tar --data $(DEMO)/digits
	$(BIN)/flashkat validate $(DEMO)/digits --checkpoint $(DEMO)/run/last.pth.tar --workers 2 > $(DEMO)/result.txt
	@cat $(DEMO)/result.txt
	@echo "Figures: $(DEMO)/run/curves.png (training) and $(DEMO)/run/rationals.png (learned functions)"

test: $(READY)
	$(BIN)/python -m pytest -n $(TESTERS)

# The tests that take minutes or tens of gigabytes each.
test-slow: $(READY)
	$(BIN)/python -m pytest -n auto -m slow

# On a machine with a CUDA GPU: the same tests there, with those marked gpu.
test-gpu: $(READY)
	$(BIN)/python -m pytest -n 4 --dist worksteal

# The tests on the lowest versions that pyproject.toml admits.
test-oldest: .venv-oldest/.ready
	.venv-oldest/bin/python -m pytest -n auto

# The tests on the newest versions that the registry gives.
test-newest: newest
	.venv-newest/bin/python -m pytest -n auto

newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'

# timm's own tests of models, of the installed version, on KATs. They are downloaded once.
test-timm: $(READY)
	$(BIN)/python dev/timm_tests.py

# constraints.txt, from the versions that test-newest takes.
constraints: newest
	echo "# Tested versions, written by make constraints on $$(.venv-newest/bin/python --version)." > $@.txt
	.venv-newest/bin/python -m pip freeze --exclude-editable >> $@.txt

# The built wheel in an environment that has only what it requires and the test runner: its command runs, and the tests of
# what depends on the wheel pass. These are the package's files and names, and the operator with the compiled library.
# Packages are linked, as installing PyTorch again takes minutes.
test-wheel: dist
	rm -rf build/wheel
	mkdir -p build/wheel
	$(PYTHON) -m venv --without-pip build/wheel/.venv
	$(BIN)/python dev/link_packages.py build/wheel/.venv flashkat pytest pytest-timeout hypothesis
	$(BIN)/python -m pip --python build/wheel/.venv install --quiet --no-index dist/*.whl
	cp -r tests pyproject.toml build/wheel
	cd build/wheel && .venv/bin/flashkat doctor
	cd build/wheel && .venv/bin/python -m pytest -k 'not import_brings and not without_triton' \
		tests/project/test_package.py tests/ops/test_rational.py \
		tests/ops/cpu/test_native.py::test_many_blocks_and_ragged_ends

# What PyPI takes: the sdist, and the wheel. On Linux auditwheel gives the wheel the manylinux tag that its symbols allow.
dist: $(READY)
	rm -rf dist build/dist
	$(BIN)/python -m build --outdir build/dist . > /dev/null
	mkdir dist
	mv build/dist/*.tar.gz dist
	if [ -x $(BIN)/auditwheel ]; \
	then PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --wheel-dir dist build/dist/*.whl; \
	else mv build/dist/*.whl dist; fi
	$(BIN)/twine check --strict dist/*

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Words per sentence of the README and the docs, and their limits for the README.
words: $(READY)
	$(BIN)/python dev/words.py

# The documentation site, in build/site. A warning is an error.
docs: $(READY)
	$(BIN)/mkdocs build --strict --site-dir build/site

# The documentation site, on a local port, built again when a page changes.
docs-serve: $(READY)
	$(BIN)/mkdocs serve

# docs/reference/flags.md, from the parsers.
flags: $(READY)
	$(BIN)/python -m flashkat.cli.flags_table > docs/reference/flags.md

# The coefficients of the starting functions, fitted anew.
starts: $(READY)
	mkdir -p build
	$(BIN)/python -m flashkat.nn.starts > build/starts.json
	mv build/starts.json src/flashkat/nn/starts.json

# The README's pictures and numbers, from a fresh run of the demo, and the picture of flashkat fit. The picture of the
# report needs Chromium.
figures: demo
	mkdir -p docs/demo
	cp $(DEMO)/run/rationals.png $(DEMO)/run/curves.png $(DEMO)/run/summary.csv $(DEMO)/run/args.yaml docs/demo
	sed 1d $(DEMO)/result.txt > docs/demo/result.json
	cd docs/how-to/functions && $(abspath $(BIN))/flashkat fit gelu --plot
	$(BIN)/flashkat inspect $(DEMO)/run/last.pth.tar --data $(DEMO)/digits --html $(DEMO)/report.html > /dev/null
	$(BROWSER) --headless --no-sandbox --hide-scrollbars --window-size=1280,900 \
		--screenshot=$(abspath docs/demo/report.png) file://$(abspath $(DEMO)/report.html)

# On a machine with a CUDA GPU: every benchmark that needs one, and of loading, into benchmarks/results.
benchmarks: $(READY)
	for name in kernels rounding host_time scaling cpu training inference loading; do $(BIN)/python -m benchmarks.$$name || exit 1; done

# The README's benchmark pictures and tables, from the committed results. No GPU needed.
benchmark-figures: $(READY)
	$(BIN)/python -m benchmarks.report.figures
	$(BIN)/python -m benchmarks.report.tables

clean:
	rm -rf .venv .venv-oldest .venv-newest build dist $(DEMO)

# The tested versions. If one cannot be had, this says so and takes pyproject.toml's ranges.
$(READY): $(SOURCES) constraints.txt
	@echo "Installing into .venv, which takes minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]' > .venv/pip.log 2>&1 || { \
		echo "Taking the ranges in pyproject.toml:" \
			"$$(sed -n 's/.*(constraint) \(.*\)/constraints.txt asks for \1, which cannot be had here/p' .venv/pip.log | head -n 1)"; \
		$(BIN)/python -m pip install --quiet --editable '.[dev]'; }
	touch $@

.venv-oldest/.ready: $(SOURCES)
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip install --quiet --compile-bytecode --python .venv-oldest --resolution lowest-direct --editable '.[test]'
	touch $@
