# One command each. Everything is installed into .venv; a torch that $(PYTHON) already has is used as it is.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
RUN := $(VENV)/bin/

.PHONY: help install demo test test-slow quality clean
.DELETE_ON_ERROR:

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## install everything into .venv

# Debian's bare python3 comes without ensurepip: virtualenv, a plain pip package, does the same work.
$(VENV)/bin/python:
	@if $(PYTHON) -c 'import torch' 2>/dev/null; then site=--system-site-packages; fi; \
	$(PYTHON) -m venv $$site $(VENV) 2>/dev/null || { \
	  rm -rf $(VENV); \
	  $(PYTHON) -m pip install --quiet --user --break-system-packages virtualenv && \
	  $(PYTHON) -m virtualenv --quiet $$site $(VENV); }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(RUN)python -c 'import torch' 2>/dev/null || $(RUN)python -m pip install --quiet '$(TORCH)'
	$(RUN)python -m pip install --quiet --editable '.[dev,space]'
	@touch $@
