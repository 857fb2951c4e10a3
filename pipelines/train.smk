rule train:
    input:
        index=manifest("index"),
        pairs=manifest("preprocess"),
    output:
        manifest("train/{model}_seed-{seed}"),
    log:
        log_of("train/{model}_seed-{seed}"),
    benchmark:
        benchmark_of("train/{model}_seed-{seed}")
    # Gradient training takes longest, so it starts first.
    priority: 2
    threads: study.train.threads * study.train.processes
    resources:
        gpu=0 if study.train.device == "cpu" else study.train.processes,
    params:
        section=model_section,
        revision=revision("train"),
    shell:
        "dualflow train --model {wildcards.model} --seed {wildcards.seed} 2>&1 | tee {log:q}"


if CLOSED_FORM:

    # One core and no GPU: the fits are short.
    rule fit_closed_form:
        input:
            index=manifest("index"),
            pairs=manifest("preprocess"),
        output:
            per_closed_form(manifest("train/{model}_seed-{seed}")),
        log:
            log_of("train/closed_form"),
        benchmark:
            benchmark_of("train/closed_form")
        # After the flows, which need the same regression and hold its lock while they fit it.
        priority: 1
        params:
            models=" ".join(f"--model {name}" for name in CLOSED_FORM),
            seed=SEEDS[0],
            revision=revision("train"),
        shell:
            "dualflow train --threads 1 --set train.device=cpu --set train.processes=1"
            " {params.models} --seed {params.seed} 2>&1 | tee {log:q}"
