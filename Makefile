# `make demo` and `make test` do all the set-up they need, in the active virtual environment or else
# in .venv.
#   make demo PYTHONS=/path/to/python3.13    with this Python
#   make demo CPU=1                          with PyTorch's builds for CPUs: 1.8 GB instead of 7
#   make demo CPU=1 TORCH_INDEX=URL          from an index of your own
PYTHONS = python3 python3.14 python3.13 python3.12 python3.11
TORCH_INDEX = https://download.pytorch.org/whl/cpu
# Most tests start other processes, each of one thread.
PYTEST_ARGS = -q -n 2 --dist worksteal
test test-documents test-slow: export OMP_NUM_THREADS = 1

# conda's base is active in every shell, and nothing is to be installed into it.
CONDA := $(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX))
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA))
ENV := $(or $(ACTIVE),$(CURDIR)/.venv)
PY := "$(ENV)/bin/python"

# The versions of Python that requirements.txt is tested with.
IS_TESTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))

# The only packages without a wheel; they are pure Python. Everything else must come as a wheel.
SOURCES := onedl-mmcv,onedl-mmdetection,onedl-mmpretrain,onedl-mmsegmentation

# The stamp of a finished set-up names what it was made from, the path too: the install is editable.
SUM := $(shell { pwd; cat setup.py pyproject.toml requirements.txt requirements-all.txt; } | cksum | cut -d' ' -f1)
RUN := $(ENV)/.gcvit_mm-run-$(SUM)
ALL := $(ENV)/.gcvit_mm-all-$(SUM)

.PHONY: setup setup-run install env demo docs test test-documents test-slow gpu lint lock

# For the demonstration, and to train and evaluate.
setup-run:
	@test -e "$(RUN)" || test -e "$(ALL)" || \
	    $(MAKE) --no-print-directory install REQUIREMENTS=requirements.txt STAMP="$(RUN)"

# For the tests and all optional parts too.
setup:
	@test -e "$(ALL)" || \
	    $(MAKE) --no-print-directory install REQUIREMENTS=requirements-all.txt STAMP="$(ALL)"

demo: setup-run
	$(PY) tools/demo.py $(DEMO_ARGS)
test: setup
	$(PY) -m pytest -m 'not slow' $(PYTEST_ARGS)

# What the documents show: the pages and the notebook.
test-documents: setup
	$(PY) -m pytest -m slow $(PYTEST_ARGS) tests/test_documents.py tests/test_notebook.py

# Those, other people's configs, large models, many processes, many kills: minutes each.
test-slow: setup
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

# What needs an NVIDIA GPU: the tests of the kernels, and the measurements of docs/performance.md.
GRAPHS := :compile_sides=[]:compile_mode=cuda_graphs
OURS := gcvit_tiny gcvit_tiny:attn_impl=eager gcvit_tiny:attn_impl=triton gcvit_tiny$(GRAPHS)
WIDE := gcvit_tiny:window_size=24 gcvit_tiny:window_size=24:attn_impl=eager \
	gcvit_tiny:window_size=24:attn_impl=triton \
	gcvit_tiny:window_size=24$(GRAPHS)
PEERS := swin_tiny convnext_tiny resnet50
MEASURE = $(PY) tools/benchmark.py --device cuda --dtype bfloat16 --mode inference training
gpu: setup
	$(PY) -m pytest tests/test_triton_attention.py tests/test_add_norm.py tests/test_graphs.py \
	    tests/test_compilation.py
	$(MEASURE) $(OURS) $(WIDE) gcvit_tiny:attn_impl=triton:compile $(PEERS) --size 800x1280 --batch 2 \
	    --out docs/performance/gpu_800x1280.json
	$(MEASURE) $(OURS) timm_gcvit_tiny $(PEERS) --size 224x224 --batch 64 \
	    --out docs/performance/gpu_224x224.json
	$(MEASURE) configs/mask_rcnn_gcvit_tiny_coco.py mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py \
	    mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py --size 800x1280 --batch 2 \
	    --out docs/performance/gpu_mask_rcnn.json
	$(PY) tools/performance_page.py

# The site, from the pages of the repository: site/index.html.
docs: env
	@$(PIP) --quiet -r requirements-docs.txt
	DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo 'The site is in site/: python3 -m http.server -d site'

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# The environments that pip builds packages in are pinned too, and must not see torch: mmcv compiles
# its operators where it finds torch.
install: export PIP_CONSTRAINT = requirements-all.txt
install: export PIP_BUILD_CONSTRAINT = requirements-all.txt
unexport PIP_NO_BUILD_ISOLATION
PIP := $(PY) -m pip install --no-deps

# What only GPUs need; a PyTorch for CPUs that is there stays.
ON_CPU = $(PY) -c 'from importlib.metadata import version; import sys; sys.exit("+cpu" not in version("torch"))' 2>/dev/null
CUDA_ONLY := ^(cuda-|nvidia-|triton==)

# The requirements are complete, so that pip adds nothing to them: see [tool.uv] in pyproject.toml.
install: env
	@if $(PY) -m pip show mmengine mmcv mmcv-lite mmdet mmsegmentation mmpretrain 2>/dev/null \
	        | grep '^Name:'; then \
	    echo "$(ENV) holds these packages of OpenMMLab, which the onedl packages would overwrite:" \
	        'deactivate it (.venv is made then) or activate another environment.' >&2; exit 1; \
	fi
	@echo 'Installing $(REQUIREMENTS) into $(ENV): minutes the first time.'
ifdef CPU
	@$(ON_CPU) || $(PIP) --index-url "$(TORCH_INDEX)" $$(grep -oE '^torch(vision)?==[^ ]+' requirements.txt)
endif
	@if $(ON_CPU); then drop='$(CUDA_ONLY)'; fi; \
	    grep -vE "$${drop:-^$$}" $(REQUIREMENTS) > "$(ENV)/requirements.txt"
	$(PIP) --only-binary :all: --no-binary $(SOURCES) -r "$(ENV)/requirements.txt" -e .
	@$(PY) -c 'import cv2'
	@rm -f "$(ENV)"/.gcvit_mm-* && touch "$(STAMP)"

# Each Python is run, not just looked up: a shim on the path may have nothing behind it.
env:
ifeq ($(ACTIVE),)
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	    for python in $(PYTHONS); do \
	        if $$python -c 'import ensurepip, venv; $(IS_TESTED)' 2>/dev/null; then \
	            echo "Creating .venv with $$($$python --version)"; exec $$python -m venv .venv; \
	        fi; \
	        version=$$($$python --version 2>/dev/null) && found="$$found$$python is $$version, "; \
	    done; \
	    echo "$${found:-no Python was found, }and Python 3.11 to 3.14 with venv and pip are supported:" \
	        'apt install python3-venv, or make PYTHONS=/path/to/python3.13' >&2; \
	    exit 1; \
	fi
# pip takes a package for installed whose copying was interrupted; RECORD is what it writes last.
	@find .venv/lib -type d -name '*.dist-info' ! -exec test -e '{}/RECORD' ';' -prune \
	    -exec rm -r '{}' +
endif
	@$(PY) -c 'import pip; $(IS_TESTED)' 2>/dev/null || { \
	    echo "$(ENV) has $$($(PY) --version 2>&1), and Python 3.11 to 3.14 with pip is needed:" \
	        'deactivate it, or remove it if it is .venv.' >&2; exit 1; }

# Pins everything anew; the versions that stand there are kept where they still fit. Wants uv.
EXTRAS := --extra app --extra export --extra track --extra test
LOCK := uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	--custom-compile-command 'make lock' pyproject.toml
lock:
	$(LOCK) --extra mm $(EXTRAS) -o requirements-all.txt
	$(LOCK) --extra mm -c requirements-all.txt -o requirements.txt
	$(LOCK) --extra docs -c requirements-all.txt -o requirements-docs.txt
	sed -i "/ ; sys_platform == 'none'$$/d" requirements.txt requirements-all.txt
