# `make demo` and `make test` do all the set-up they need, in the active virtual environment or
# else in .venv. To use another Python: `make demo PYTHONS=/path/to/python3.12`.
PYTHONS = python3 python3.12 python3.11
# Most tests start other processes, each of one thread.
PYTEST_ARGS = -q -n 2 --dist worksteal
test test-documents test-slow: export OMP_NUM_THREADS = 1

ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))
ENV := $(or $(ACTIVE),$(CURDIR)/.venv)
PY := "$(ENV)/bin/python"

# The stamp of a finished set-up names what it was made from, the path too: the install is editable.
STAMP := $(ENV)/.gcvit_mm-$(shell { pwd; cat setup.py constraints.txt; } | cksum | cut -d' ' -f1)

# The versions that constraints.txt is tested with.
IS_TESTED := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))

# The only packages without a wheel; they are pure Python. Everything else must come as a wheel.
SOURCES := onedl-mmcv,onedl-mmdetection,onedl-mmpretrain,onedl-mmsegmentation

.PHONY: setup install env demo test test-documents test-slow gpu lint

setup:
	@test -e "$(STAMP)" || $(MAKE) --no-print-directory install

demo: setup
	$(PY) tools/demo.py

test: setup
	$(PY) -m pytest -m 'not slow' $(PYTEST_ARGS)

# What the documents show: the pages, the notebook, and the page about other people's configs.
test-documents: setup
	$(PY) -m pytest -m slow $(PYTEST_ARGS) tests/test_documents.py tests/test_notebook.py \
	    tests/test_stock_configs.py

# Those and large models, many processes, many kills: minutes each.
test-slow: setup
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

# What needs an NVIDIA GPU: the tests of the kernels, and the measurements of docs/performance.md.
OURS := gcvit_tiny gcvit_tiny:attn_impl=eager gcvit_tiny:attn_impl=triton
WIDE := gcvit_tiny:window_size=24 gcvit_tiny:window_size=24:attn_impl=eager \
	gcvit_tiny:window_size=24:attn_impl=triton
PEERS := swin_tiny convnext_tiny resnet50
MEASURE = $(PY) tools/benchmark.py --device cuda --dtype bfloat16 --mode inference training
gpu: setup
	$(PY) -m pytest tests/test_triton_attention.py tests/test_compilation.py
	$(MEASURE) $(OURS) $(WIDE) gcvit_tiny:attn_impl=triton:compile $(PEERS) --size 800x1280 --batch 2 \
	    --out docs/performance/gpu_800x1280.json
	$(MEASURE) $(OURS) timm_gcvit_tiny $(PEERS) --size 224x224 --batch 64 \
	    --out docs/performance/gpu_224x224.json
	$(MEASURE) configs/mask_rcnn_gcvit_tiny_coco.py mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py \
	    mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py --size 800x1280 --batch 2 \
	    --out docs/performance/gpu_mask_rcnn.json
	$(PY) tools/performance_page.py

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# The environments that pip builds packages in are pinned too, and must not see torch: mmcv compiles
# its operators where it finds torch.
install: export PIP_CONSTRAINT = constraints.txt
install: export PIP_BUILD_CONSTRAINT = constraints.txt
unexport PIP_NO_BUILD_ISOLATION

install: env
	@if $(PY) -m pip show mmengine mmcv mmcv-lite mmdet mmsegmentation mmpretrain 2>/dev/null \
	        | grep '^Name:'; then \
	    echo "$(ENV) holds these packages of OpenMMLab, which the onedl packages would overwrite:" \
	        'deactivate it (.venv is made then) or activate another environment.' >&2; exit 1; \
	fi
	@echo 'Installing into $(ENV): minutes the first time (downloads 4 GB, takes 7.5 GB).'
	$(PY) -m pip install --only-binary :all: --no-binary $(SOURCES) -c constraints.txt -e '.[mm,app,export,track,test]'
# Two of the packages fill the same cv2 folder, and the one that is written last may be the one that
# needs a desktop's libraries.
	@$(PY) -c 'import cv2' 2>/dev/null || $(PY) -m pip install --force-reinstall --no-deps \
	    "$$(grep '^opencv-python-headless==' constraints.txt)"
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
	    done; \
	    echo 'None of "$(PYTHONS)" is a Python 3.11 or 3.12 with venv and pip. On Debian and' \
	        'Ubuntu: apt install python3-venv. Or name one: make PYTHONS=/path/to/python' >&2; \
	    exit 1; \
	fi
# pip takes a package for installed whose copying was interrupted; RECORD is what it writes last.
	@find .venv/lib -type d -name '*.dist-info' ! -exec test -e '{}/RECORD' ';' -prune \
	    -exec rm -r '{}' +
endif
	@$(PY) -c 'import pip; $(IS_TESTED)' 2>/dev/null || { \
	    echo '$(ENV) has no Python 3.11 or 3.12 with pip: remove or deactivate it.' >&2; exit 1; }
