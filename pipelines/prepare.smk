if EMBEDDED:

    rule cohort_shard:
        output:
            manifest("cohort/shard-{shard}"),
        log:
            log_of("cohort/shard-{shard}"),
        benchmark:
            benchmark_of("cohort/shard-{shard}")
        params:
            section=section("cohort"),
            shards={"preprocess": {"shards": len(SHARDS)}},
            revision=revision("cohort"),
        shell:
            "dualflow cohort-shard --shard {wildcards.shard} 2>&1 | tee {log:q}"

    rule cohort:
        input:
            expand(manifest("cohort/shard-{shard}"), shard=SHARDS),
        output:
            manifest("cohort"),
        log:
            log_of("cohort"),
        benchmark:
            benchmark_of("cohort")
        params:
            section=section("cohort"),
        shell:
            "dualflow cohort-finish 2>&1 | tee {log:q}"


rule index:
    input:
        dataset,
    output:
        manifest("index"),
    log:
        log_of("index"),
    benchmark:
        benchmark_of("index")
    params:
        section=section("study", "split", without=("results",)),
        files=dataset_fingerprint(),
        revision=revision("index"),
    shell:
        "dualflow index 2>&1 | tee {log:q}"


rule preprocess_shard:
    input:
        manifest("index"),
        reference_mask,
    output:
        manifest("preprocess/shard-{shard}"),
    log:
        log_of("preprocess/shard-{shard}"),
    benchmark:
        benchmark_of("preprocess/shard-{shard}")
    threads: study.preprocess.workers
    params:
        section=section("preprocess", without=("workers",)),
        revision=revision("preprocess"),
    shell:
        "dualflow preprocess --workers {threads}"
        " --shard {wildcards.shard} 2>&1 | tee {log:q}"


rule preprocess:
    input:
        expand(manifest("preprocess/shard-{shard}"), shard=SHARDS),
    output:
        manifest("preprocess"),
    log:
        log_of("preprocess"),
    benchmark:
        benchmark_of("preprocess")
    shell:
        "dualflow preprocess-finish 2>&1 | tee {log:q}"


rule qc:
    input:
        index=manifest("index"),
        pairs=manifest("preprocess"),
    output:
        manifest("qc"),
        report(str(LAYOUT.qc), caption="captions/qc.rst", category="Quality control"),
        report(
            str(LAYOUT.quality),
            caption="captions/quality.rst",
            category="Quality control",
        ),
    log:
        log_of("qc"),
    benchmark:
        benchmark_of("qc")
    # Before the trainings, which are ready at the same time and take all cores: the page shows what they learn from.
    priority: 3
    params:
        section=section("review"),
        revision=revision("qc"),
    shell:
        "dualflow qc 2>&1 | tee {log:q}"
