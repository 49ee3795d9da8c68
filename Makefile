# make run      set up, then run the notebook; results in images&samples/latest/
# make test     set up, then run every test
# For developers:
# make test-colab    the notebook alone in Colab's versions, with Python 3.13 or COLAB_PYTHON=…
# make test-lowest   every test in the lowest versions that requirements.txt allows
# make export   write mnist_ddpm/ddpm.py from the notebook
# make gallery  draw the pictures of images&samples/ with the shipped checkpoints
# make notebook execute the notebook and those of further/ in place, and export
# make playground  build playground/digits.html, which draws digits in the browser
# make measure  print what reading each notebook asks for
# make lint     check style

PYTHON ?= python3
BIN := .venv/bin
LATEST := images&samples/latest
# digits as their config.json advises; faces by eye: docs/results.md
FACES := --checkpoint checkpoints/celeba --guidance 2 --sampler dpmpp --steps 20

COLAB_PYTHON ?= python3.13
LOWEST_PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo $(PYTHON))

.PHONY: run test test-colab test-lowest export gallery notebook playground measure lint

run: .venv/.installed
	@mkdir -p "$(LATEST)"
	$(BIN)/python -m papermill MNIST_DDPM.ipynb "$(LATEST)/MNIST_DDPM.ipynb"
	@echo 'Pictures and the executed notebook are in "$(LATEST)/"'

test: .venv/.installed-dev
	$(BIN)/python -m pytest

# with Colab's Python, unless the caller has set COLAB_PYTHON
test-colab: .venv-colab/.installed
	.venv-colab/bin/python tools/alone.py $(if $(filter file,$(origin COLAB_PYTHON)),--python 3.13) epochs=0.2

test-lowest: .venv-lowest/.installed
	.venv-lowest/bin/python -m pytest

export: .venv/.installed-dev
	$(BIN)/python tools/notebook.py export

gallery: .venv/.installed
	$(BIN)/python -m mnist_ddpm sample --n 64 --seed 0 --out "images&samples"
	$(BIN)/python -m mnist_ddpm sample $(FACES) --n 36 --seed 0 --out "images&samples/faces"

notebook: .venv/.installed-dev
	$(BIN)/python tools/notebook.py run MNIST_DDPM.ipynb further/*.ipynb

playground: .venv/.installed
	$(BIN)/python playground/build.py

measure: .venv/.installed-dev
	$(BIN)/python tools/notebook.py measure

lint: .venv/.installed-dev
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

.venv/.installed: requirements.txt requirements/run.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one with PYTHON=...")'
	@echo "Installing PyTorch and the rest into .venv: this takes some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/run.txt
	@echo "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/clone.pth"  # scripts elsewhere import mnist_ddpm
	@mkdir -p .venv/etc/ipython
	@echo 'c.IPKernelApp.log_level = 40' > .venv/etc/ipython/ipython_kernel_config.py  # no warning that the kernel uses TCP
	@touch $@

# torch for processors alone is far smaller: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
.venv-%/.installed: VENV_PYTHON = $(if $(filter colab,$*),$(COLAB_PYTHON),$(LOWEST_PYTHON))
.venv-%/.installed: requirements/%.txt
	$(VENV_PYTHON) -m venv .venv-$* || { echo "$(VENV_PYTHON) makes no venv: install it, or name another with $(if $(filter colab,$*),COLAB_PYTHON,LOWEST_PYTHON)=..." >&2; exit 1; }
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
