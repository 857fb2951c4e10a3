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
    retries: 1
    threads: study.train.threads * study.train.processes
    params:
        section=model_section,
        version=__version__,
        threads=study.train.threads,
    shell:
        "dualflow train --threads {params.threads}"
        " --model {wildcards.model} --seed {wildcards.seed} 2>&1 | tee {log:q}"
