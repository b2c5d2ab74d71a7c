# make demo: from a fresh clone to out/demo.png.   make test: all tests.   make docs: build/site.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test lint docs clean

# torch comes first and alone: constraints.txt pins it, so nothing below brings another build.
$(VENV)/.installed-%: pyproject.toml setup.py constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(if $(filter docs,$(EXTRAS)),,$(RUN) -m pip install --quiet -c constraints.txt torch)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

$(VENV)/.installed-demo: EXTRAS = cpu,export,tools
$(VENV)/.installed-test: EXTRAS = cpu,export,tools,dev
$(VENV)/.installed-docs: EXTRAS = docs

demo: $(VENV)/.installed-demo
	$(RUN) -m csd.tools.demo --out out

test: $(VENV)/.installed-test lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist worksteal --cov --cov-report=term

lint: $(VENV)/.installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

docs: $(VENV)/.installed-docs
	$(RUN) -m mkdocs build --strict

clean:
	rm -rf $(VENV) out build *.egg-info
