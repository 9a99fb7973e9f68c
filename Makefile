# Everything runs in .venv, which `make venv` builds and keeps up to date.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SELECT ?= -m "not slow"
FOLDERS := agent envs inner_models experiments

.PHONY: help venv test test-all check format-check lint types pytest format demo docs tutorials licences release-check clean

help:
	@echo "make test      set up .venv, then format check, lint, types, fast tests (what CI runs)"
	@echo "make test-all  the same with the slow tests: examples, tutorials, the manual, Ray"
	@echo "make check     like test, in the .venv that is there"
	@echo "make format  rewrite the code in the house format"
	@echo "make demo    set up .venv, then the demonstration, into runs/demo"
	@echo "make docs    build the manual into site/; warnings are errors"
	@echo "make tutorials  run the tutorials and keep what they print"
	@echo "make licences  list the licences of all dependencies in docs/licences.md"
	@echo "make release-check  build, install and try out what a release would be"
	@echo "make clean   remove all that was generated, save for runs/"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check \
		-e '.[train,compare,huggingface,lightning,export,completion,ray,docs,dev]' -c constraints.txt
	touch $@

test: venv
	$(MAKE) check

test-all: venv
	$(MAKE) check SELECT=

check: format-check lint types pytest

format-check: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

# mypy needs a folder that is named like the package: links to the four folders.
types: $(STAMP)
	mkdir -p .typecheck/pacesetter
	for folder in $(FOLDERS); do ln -sfn ../../$$folder .typecheck/pacesetter/$$folder; done
	MYPYPATH=.typecheck $(BIN)/mypy -p pacesetter
	MYPYPATH=.typecheck:docs/hooks $(BIN)/mypy docs/hooks
	MYPYPATH=.typecheck:.ci $(BIN)/mypy .ci/*.py

# Two workers with one thread each. TESTS narrows them: make pytest TESTS="tests/envs -k ray" SELECT=
pytest: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(SELECT) $(TESTS)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# An earlier demonstration is moved aside, not lost.
demo: venv
	test ! -e runs/demo || mv runs/demo runs/demo-until-$$(date +%Y%m%d-%H%M%S)
	$(BIN)/pacesetter demo --out runs/demo

# Opened from the disk it needs no network. The variable silences an advertisement; with --quiet,
# warnings would not count.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"

# The notebooks run in a folder of their own, so that what they write does not lie in docs/.
tutorials: $(STAMP)
	rm -rf build/tutorials && mkdir -p build/tutorials && cp docs/tutorials/*.ipynb build/tutorials
	OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore:IProgress $(BIN)/jupyter nbconvert --to notebook \
		--execute --inplace --ClearMetadataPreprocessor.enabled=True build/tutorials/*.ipynb
	cp build/tutorials/*.ipynb docs/tutorials

licences: $(STAMP)
	$(BIN)/python .ci/licences.py

# Takes TORCH, GYMNASIUM, SB3 (versions to try), DEMO=quick, TESTS (arguments of pytest) and STEPS.
release-check: $(STAMP)
	$(BIN)/python .ci/release_check.py \
		$(if $(TORCH),--torch $(TORCH)) $(if $(GYMNASIUM),--gymnasium $(GYMNASIUM)) \
		$(if $(SB3),--sb3 $(SB3)) $(if $(DEMO),--demo $(DEMO)) \
		$(if $(TESTS),--tests '$(TESTS)') $(if $(STEPS),--steps $(STEPS))

clean:
	rm -rf .venv .typecheck site build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(FOLDERS) tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
