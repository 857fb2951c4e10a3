# A training keeps its result when only scans that it does not learn from change. Steps that read other scans therefore
# depend on the index and the preprocessing too.
rule evaluate:
    input:
        test_people,
        index=manifest("index"),
        pairs=manifest("preprocess"),
        model=manifest("train/{model}_seed-{seed}"),
    output:
        manifest("evaluate/{model}_seed-{seed}"),
    log:
        log_of("evaluate/{model}_seed-{seed}"),
    benchmark:
        benchmark_of("evaluate/{model}_seed-{seed}")
    resources:
        gpu=MODEL_GPU,
    params:
        section=section("evaluate", without=("bootstrap",)),
        temperature={"convert": {"temperature": study.convert.temperature}},
        revision=revision("evaluate"),
    shell:
        "dualflow evaluate --threads {threads}"
        " --model {wildcards.model} --seed {wildcards.seed} 2>&1 | tee {log:q}"


if CLOSED_FORM:

    rule evaluate_closed_form:
        input:
            test_people,
            index=manifest("index"),
            pairs=manifest("preprocess"),
            models=per_closed_form(manifest("train/{model}_seed-{seed}")),
        output:
            per_closed_form(manifest("evaluate/{model}_seed-{seed}")),
        log:
            log_of("evaluate/closed_form"),
        benchmark:
            benchmark_of("evaluate/closed_form")
        params:
            models=" ".join(f"--model {name}" for name in CLOSED_FORM),
            seed=SEEDS[0],
            section=section("evaluate", without=("bootstrap",)),
            temperature={"convert": {"temperature": study.convert.temperature}},
            revision=revision("evaluate"),
        shell:
            "dualflow evaluate --set train.device=cpu {params.models}"
            " --seed {params.seed} 2>&1 | tee {log:q}"


rule evaluate_ceilings:
    input:
        index=manifest("index"),
        pairs=manifest("preprocess"),
    output:
        manifest("evaluate/ceilings"),
    log:
        log_of("evaluate/ceilings"),
    benchmark:
        benchmark_of("evaluate/ceilings")
    params:
        section=section("evaluate", without=("bootstrap",)),
        revision=revision("evaluate"),
    shell:
        "dualflow evaluate-ceilings --threads {threads} 2>&1 | tee {log:q}"


rule report:
    input:
        scores=per_model(manifest("evaluate/{model}_seed-{seed}")),
        ceilings=manifest("evaluate/ceilings"),
        volumes=manifest("convert"),
        quality=manifest("qc"),
        analyses=[manifest(step) for step in group_steps(study)],
    # The files beside the manifest are listed by `snakemake --report`.
    output:
        manifest("report"),
        report(str(LAYOUT.report), caption="captions/report.rst", category="Report"),
        [
            report(
                str(LAYOUT.report_figure(name)),
                caption=f"captions/{name}.rst",
                category="Figures",
                labels={"figure": name},
            )
            for name in FILED
        ],
        report(
            directory(str(LAYOUT.other_figures)),
            patterns=["{figure}.png"],
            caption="captions/others.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        [
            report(
                str(LAYOUT.table(name)),
                caption=f"captions/{name}.rst",
                category="Tables",
                labels={"table": name},
            )
            for name in (
                "summary",
                "differences",
                "groups",
                "native",
                "region_agreement",
            )
        ],
    log:
        log_of("report"),
    benchmark:
        benchmark_of("report")
    params:
        section=section("evaluate"),
        revision=revision("report"),
    shell:
        "dualflow report --threads {threads} 2>&1 | tee {log:q}"


rule check:
    input:
        [manifest(step) for step in step_names(study) if step != CHECK],
    output:
        manifest("check"),
    log:
        log_of("check"),
    retries: 0  # its exit code tells of scans that were excluded
    shell:
        "dualflow check 2>&1 | tee {log:q}"


# Only on request: `snakemake compare`. It runs the workflow on studies of its own, within this run's lock.
rule compare:
    log:
        log_of("compare"),
    retries: 0  # the workflows that it runs repeat their own jobs
    localrule: True
    threads: 1024  # that is all of --cores; `snakemake --report` has none
    shell:
        'DUALFLOW_RUN=1 dualflow compare --config "$DUALFLOW_CONFIG"'
        " --cores {threads} 2>&1 | tee {log:q}"
