# Chapters x profiles -> executed notebooks -> HTML, all under build/<profile>/.
#
#   snakemake --cores all laptop                     compute a profile and render it
#   snakemake --cores all html_published             render the published results (data/, figures/), computing nothing,
#                                                    of each chapter the largest, or with --config published=laptop that one
#   snakemake --profile profiles/slurm paper         the same on a cluster, each job with one GPU
#
# Rows, manifests, figures and checkpoints are not declared as outputs: Snakemake deletes the outputs of a failed job,
# and a chapter that was killed resumes from them.
import os
from glob import glob
from pathlib import Path

import yaml

try:
    from fieldbook.nn.identity import code, digest
    from fieldbook.run import parameters
    from fieldbook.run.paths import SIZES
except ImportError as error:
    raise WorkflowError(f"{error}: run `source .venv/bin/activate` first (`make` creates that environment)") from None
except RuntimeError as error:  # the library of another checkout
    raise WorkflowError(str(error)) from None

os.environ["PYTHONUTF8"] = "1"  # whatever the locale, for all that is started from here
PROFILES = ["quick", "laptop", "evening", "paper"]
TOC = yaml.safe_load(Path("_toc.yml").read_text(encoding="utf-8"))
FRONT = TOC["root"]
PAGES = [page["file"] for part in TOC["parts"] for page in part["chapters"]]
CHAPTERS = [page for page in PAGES if Path(f"book/{page}.py").exists()]
WRITTEN = [page for page in [FRONT, *PAGES] if page not in CHAPTERS]
NEEDED = [f"book/{page}.md" for page in WRITTEN] + [f"book/{chapter}.ipynb" for chapter in CHAPTERS]
NEEDED += [f"parameters/{chapter}/{name}.yaml" for chapter in CHAPTERS for name in PROFILES]
LIBRARY = sorted(path for end in ("*.py", "*.mplstyle", "*.csv") for path in glob(f"lib/fieldbook/**/{end}", recursive=True))
PUBLISHED = sorted(path for path in glob("data/*/*/*") + glob("figures/*/*/*") if not {"quick", "inputs"} & {*path.split("/")})
STATIC = ["_config.yml", "references.bib", *(str(Path(path).relative_to("book")) for path in glob("book/_[est]*/*"))]
RENDERED = config.get("published", "largest")  # the profile that html_published shows, or the largest of each chapter
OPERATIONS = ["add", "sub", "mul", "div"]

GPU = {"paper": 1}  # everything else runs on the CPU
# GPUs that a chapter keeps busy under `paper`; it gets at most as many as `--config shards=N` allows, one for each job.
SHARDS = {"spectra_vit": 8, "encoder_probe": 2, "agop": 11, "si_sgld": 18, "entropy": 4, "scaling": 16, "drifting": 16}
MOST = int(config.get("shards", 1))
MINUTES = {"quick": 10, "small": 10, "laptop": 60, "evening": 360, "paper": 1440}

# Snakemake itself would take an earlier page for up to date.
if missing := [file for file in NEEDED if not Path(file).exists()]:
    raise WorkflowError(f"missing: {', '.join(missing)} (chapters are those of _toc.yml; 'make notebooks' writes .ipynb)")

# Notebooks are run again when the library's code changes, but not for a docstring or a comment.
TEXT = {path: Path(path).read_text(encoding="utf-8") for path in LIBRARY}
CODE = Path("build/code") / digest({path: code(text) if path.endswith(".py") else text for path, text in TEXT.items()})
if not CODE.exists():
    CODE.parent.mkdir(parents=True, exist_ok=True)
    CODE.touch()

LIVE = [page for page in WRITTEN if "{code-cell}" in Path(f"book/{page}.md").read_text(encoding="utf-8")]
TEXTS = [page for page in WRITTEN if page not in LIVE]


def profile(wildcards):
    """build/published holds published profiles; every other folder under build/ is named after its own."""
    if wildcards.build != "published":
        return wildcards.build
    if RENDERED != "largest" or "chapter" not in wildcards.keys():
        return RENDERED
    return next((size for size in SIZES if Path(f"data/{wildcards.chapter}/{size}").exists()), "laptop")


def rows(wildcards):
    """What a chapter reads beside its parameters: published rows, when it may not compute."""
    return "build/published/.copied" if wildcards.build == "published" else []


def trained(wildcards):
    """Weights of trained networks that a chapter starts from, by its parameter `networks`, a profile of agop."""
    if wildcards.build == "published":
        return []
    notebook, file = f"book/{wildcards.chapter}.ipynb", f"parameters/{wildcards.chapter}/{wildcards.build}.yaml"
    if "networks" not in parameters.specification(notebook):
        return []
    try:
        networks = parameters.check_file(notebook, file)["networks"]
    except ValueError as error:
        raise WorkflowError(str(error)) from None
    return [f"build/{wildcards.build}/data/inputs/networks/{networks}/{operation}.safetensors" for operation in OPERATIONS]


def shards(wildcards):
    """Jobs that compute a chapter together, with a GPU each, before it is drawn; none unless `shards` allows several."""
    n = min(MOST, SHARDS.get(wildcards.chapter, 1)) if wildcards.build in GPU else 1
    return [f"build/{wildcards.build}/shards/{wildcards.chapter}/{i}-{n}.ipynb" for i in range(n)] if n > 1 else []


def gpus(wildcards):
    """One for a job that computes under `paper`, none for one that only draws what shards have computed."""
    only_draws = "shard" not in wildcards.keys() and shards(wildcards)
    return 0 if only_draws else GPU.get(wildcards.build, 0)


wildcard_constraints:
    build="|".join([*PROFILES, "small", "published"]),
    networks=r"\w+",
    shard=r"\d+-\d+",
    chapter="|".join(CHAPTERS),
    text="|".join(TEXTS),
    live="|".join(LIVE),


localrules: quick, laptop, evening, paper, html_published, copy_published, networks, text, html


def book(build):
    """The page and every notebook on it: one that has failed is computed again, though an older page be there."""
    return [f"build/{build}/html/index.html", *(f"build/{build}/book/{chapter}.ipynb" for chapter in CHAPTERS)]


rule laptop:
    input: book("laptop")


rule quick:
    input: book("quick")


rule evening:
    input: book("evening")


rule paper:
    input: book("paper")


rule html_published:
    input: book("published")


rule copy_published:
    input: PUBLISHED
    output: touch("build/published/.copied")
    shell:
        """
        rm -rf build/published/data build/published/figures
        tar -cf - {input:q} | tar -xf - -C build/published
        """


# The executed notebook is written as a log, which survives a failure, and copied when it is complete.
rule chapter:
    input:
        rows,
        trained,
        shards,
        CODE,
        notebook="book/{chapter}.ipynb",
        parameters=lambda wildcards: f"parameters/{wildcards.chapter}/{profile(wildcards)}.yaml",
    output: "build/{build}/book/{chapter}.ipynb"
    log: "build/{build}/log/{chapter}.ipynb"
    benchmark: "build/{build}/benchmark/{chapter}.tsv"
    params:
        frozen=lambda wildcards: int(wildcards.build == "published"),
        shard="",
    # at most; one worker process each, but on a GPU, where the parameters say how many
    threads: lambda wildcards: 1 if wildcards.build == "published" else 8
    resources:
        mem_mb=lambda wildcards, threads: 3000 + 1000 * threads,
        runtime=lambda wildcards: MINUTES[profile(wildcards)],
        gpu=gpus,
    shell:
        """
        python -m fieldbook.run.parameters check {input.notebook} {input.parameters}
        export FIELDBOOK_RESULTS="$PWD/build/{wildcards.build}" FIELDBOOK_FROZEN={params.frozen}
        export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
        [ {resources.gpu} = 0 ] && workers="-p workers {threads}" || workers=""
        papermill {input.notebook} {log} -f {input.parameters} $workers {params.shard} --no-progress-bar
        python -m fieldbook.run.notebooks settle {log} {output}
        """


# A shard runs the same notebook beside the others: all of them fill the same tables, and each ends with all rows.
use rule chapter as shard with:
    input:
        trained,
        CODE,
        notebook="book/{chapter}.ipynb",
        parameters="parameters/{chapter}/{build}.yaml",
    output: "build/{build}/shards/{chapter}/{shard}.ipynb"
    log: "build/{build}/log/{chapter}-{shard}.ipynb"
    benchmark: "build/{build}/benchmark/{chapter}-{shard}.tsv"
    params:
        frozen=0,
        shard=lambda wildcards: f"-y 'shard: [{wildcards.shard.replace('-', ', ')}]'",


# What agop has trained under one profile is what other chapters start from, under any.
rule networks:
    input: "build/{networks}/book/agop.ipynb"
    output: expand("build/{{build}}/data/inputs/networks/{{networks}}/{operation}.safetensors", operation=OPERATIONS)
    params: trained="build/{networks}/data/inputs/agop/{networks}/networks"
    shell: "for file in {output}; do cp {params.trained}/$(basename $file) $file; done"


# Pages that collect what all chapters have found.
rule live:
    input:
        expand("build/{{build}}/book/{chapter}.ipynb", chapter=CHAPTERS),
        CODE,
        "book/logs.yaml",
        page="book/{live}.md",
    output: "build/{build}/book/{live}.ipynb"
    log: "build/{build}/log/{live}.ipynb"
    params: profile=profile
    threads: 1
    resources: mem_mb=2000, runtime=10
    shell:
        """
        export FIELDBOOK_RESULTS="$PWD/build/{wildcards.build}"
        jupytext --quiet --to ipynb --output {log} {input.page}
        papermill {log} {log} -p profile {params.profile} --no-progress-bar
        python -m fieldbook.run.notebooks settle {log} {output}
        """


rule text:
    input: "book/{text}.md"
    output: "build/{build}/book/{text}.md"
    shell: "cp {input} {output}"


# Warnings are errors: without -W a page that could not be built exits with 0. What has not changed is not read again; a
# page whose warnings have failed the build would not be, so that nothing is kept of a build that failed. Pages of the
# library are made anew: those that Jupyter Book finds there, it would leave out.
rule html:
    input:
        expand("build/{{build}}/book/{page}.ipynb", page=[*LIVE, *CHAPTERS]),
        expand("build/{{build}}/book/{page}.md", page=TEXTS),
        expand("book/{file}", file=STATIC),
        LIBRARY,
        toc="_toc.yml",
    output: "build/{build}/html/index.html"
    log: "build/{build}/log/html.txt"
    params: pages=digest([FRONT, *PAGES, *LIBRARY])
    threads: 1
    resources: mem_mb=2000, runtime=10
    shell:
        """
        python -m fieldbook.run.figures build/{wildcards.build}
        cp -rp book/_config.yml book/references.bib book/_ext book/_static book/_templates book/_vendor build/{wildcards.build}/book/
        rm -rf build/{wildcards.build}/html build/{wildcards.build}/book/api
        echo {params.pages:q} | cmp --quiet - build/{wildcards.build}/pages.txt || rm -rf build/{wildcards.build}/_build
        echo {params.pages:q} > build/{wildcards.build}/pages.txt
        jupyter-book build build/{wildcards.build}/book --toc "$PWD/{input.toc}" --path-output build/{wildcards.build} \
            -W -n --keep-going --quiet > {log} 2>&1 || {{ cat {log}; rm -rf build/{wildcards.build}/_build; exit 1; }}
        cp -r build/{wildcards.build}/_build/html build/{wildcards.build}/html
        """
