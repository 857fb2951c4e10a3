if study.impute:

    rule impute:
        input:
            index=manifest("index"),
            pairs=manifest("preprocess"),
            model=manifest(f"train/{study.imputing_model}_seed-{SEEDS[0]}"),
            meta_regions=study.impute.meta_regions or [],
        output:
            manifest("impute"),
        log:
            log_of("impute"),
        benchmark:
            benchmark_of("impute")
        resources:
            gpu=MODEL_GPU,
        params:
            section=section("impute", without=("analyses",)),
            revision=revision("impute"),
        shell:
            "dualflow impute --threads {threads} 2>&1 | tee {log:q}"


if ANALYSES:

    rule analyse:
        input:
            manifest("impute"),
        output:
            manifest("analyse/{analysis}"),
        log:
            log_of("analyse/{analysis}"),
        benchmark:
            benchmark_of("analyse/{analysis}")
        params:
            formula=analysis_section,
            section=section("impute", without=("analyses", "draws", "seed")),
            revision=revision("analyse"),
        shell:
            "dualflow analyse --threads {threads}"
            " --name {wildcards.analysis} 2>&1 | tee {log:q}"
