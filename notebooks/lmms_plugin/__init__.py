"""Models of process_gen in lmms-eval.

    PYTHONPATH=notebooks LMMS_EVAL_PLUGINS=lmms_plugin python -m lmms_eval --model process_gen \
        --model_args workdir=runs/7b,output_dir=logs/images --tasks ueval --batch_size 16
"""
