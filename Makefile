# Two commands do everything on a fresh machine: `make book` and `make test`. Each target is a line over the real tool.
SHOWN := $(or $(PROFILE),largest)
PROFILE ?= laptop
PYTHON ?= python3
VENV := .venv
CHAPTERS := $(wildcard $(patsubst %,book/%.py,$(shell sed -n 's/.* file: //p' _toc.yml)))
STAMP := $(VENV)/.installed
SNAKEMAKE := snakemake --cores all --resources gpu=1 --rerun-incomplete --keep-going --quiet rules host
LOCKED := { ls .snakemake/locks/* > /dev/null 2>&1 && echo "locked: if no other run is left in this folder, run 'make unlock' first"; exit 1; }
KNOWN := { case "$(PROFILE)" in quick|laptop|evening|paper) ;; *) \
	echo "PROFILE is '$(PROFILE)'; expected quick, laptop, evening or paper (other parameter sets: run a chapter with papermill)"; exit 1; esac; }
ANEW := this folder was moved or copied with $(VENV), or that is broken: run 'rm -rf $(VENV)', then the same command again
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONUTF8 := 1

.PHONY: here help book html publish notebooks lab test test-gpu test-cluster bench unlock clean
help:            ## show this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

book: here       ## compute PROFILE (laptop) into build/PROFILE and render it
	@$(KNOWN)
	@$(SNAKEMAKE) -- $(PROFILE) || $(LOCKED)
	@echo "open build/$(PROFILE)/html/index.html"

html: here       ## render the published results without computing, the largest of each chapter or those of PROFILE
	@$(KNOWN)
	@$(SNAKEMAKE) --config published=$(SHOWN) -- html_published || $(LOCKED)
	@echo "open build/published/html/index.html"

publish: here    ## copy the finished results of PROFILE from build/ to data/ and figures/
	@python -m fieldbook.run.publish "$(PROFILE)"

notebooks: here  ## regenerate and execute every .ipynb, or that of CHAPTER, from its .py, one way
	@python -m fieldbook.run.notebooks $(or $(CHAPTER:%=book/%.py),$(CHAPTERS))

lab: here        ## open JupyterLab on the book
	@JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" jupyter lab $(LAB_FLAGS) book

test: here       ## run every test: library, notebooks, book in a browser
	@pytest -n 2 --dist loadscope --nbval-lax --nbval-current-env --ignore tests/cluster tests $(CHAPTERS:.py=.ipynb)

test-gpu: here   ## run every chapter and the library on this machine's GPU, and compare them with the CPU
	@pytest -v tests/gpu

test-cluster: here ## run the book on a SLURM of one node that the test starts here; as root, with apt
	@command -v slurmctld > /dev/null && command -v munged > /dev/null || \
		{ apt-get update -q && apt-get install -qy --no-install-recommends slurm-wlm munge; }
	@pip install -q $(PIP_FLAGS) -c constraints.txt -e ".[cluster]"
	@pytest -v tests/cluster

bench: here      ## run the benchmarks against peers, into benchmarks/RESULTS.md
	@python benchmarks

unlock: here     ## free the folder after a crash or a power failure, when no other run is left in it
	@snakemake --unlock --quiet all -- $(PROFILE)

clean:           ## remove the environment and all rendered pages; computed rows stay in build/*/data
	rm -rf $(VENV) .snakemake build/published build/screenshots build/*/book build/*/html build/*/log build/*/benchmark

here: $(STAMP)
	@$(VENV)/bin/python -c "import fieldbook" 2> /dev/null || { echo "$(ANEW)"; exit 1; }
	@$(VENV)/bin/python -m fieldbook.run.paths

# The stamp comes last, so an interrupted install is taken up again by the next command.
$(STAMP): pyproject.toml constraints.txt
	@[ ! -f $(VENV)/bin/activate ] || grep -qF "$(CURDIR)/$(VENV)" $(VENV)/bin/activate || { echo "$(ANEW)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[all]"
	@touch $@
