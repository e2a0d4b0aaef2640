# The image of every node of a Ray cluster on Kubernetes (deploy/kuberay/rayjob.yaml), or of one machine:
#
#   docker build -t tailorpo .
#   docker run --rm --shm-size 2g --volume /srv/runs:/mnt/runs tailorpo \
#     python jobs/align.py --config configs/demo.yaml output_dir=/mnt/runs
#
# Ray's own image has the Python and the Ray of all nodes, and the settings by which NVIDIA's container runtime hands GPUs
# over; torch brings its own CUDA. It runs as the user ray, 1000, of the group users, 100. No secret belongs in here: an
# image is copied to many places.
FROM rayproject/ray:2.60.0-py311-gpu

# A folder that WORKDIR makes belongs to root, and pip builds in it.
RUN mkdir /home/ray/tailorpo
WORKDIR /home/ray/tailorpo

# The packages first, which seldom change: beside pyproject.toml lies no code yet, so this installs the dependencies alone.
COPY --chown=1000:100 pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --no-cache-dir --no-input -c constraints.txt .

COPY --chown=1000:100 pipeline/ pipeline/
COPY --chown=1000:100 actors/ actors/
COPY --chown=1000:100 jobs/ jobs/
COPY --chown=1000:100 configs/ configs/
COPY --chown=1000:100 models/ models/
COPY --chown=1000:100 deploy/drain_on_notice.py deploy/drain_on_notice.py

# Workers import the code from here, wherever Ray starts them. Nobody talks to Ray without its token. An actor that asks for
# no GPU sees none (Ray shows it all of its node's otherwise). A job that is stopped has the time to end its iteration. Idle
# processes wait for the next iteration's tasks (Ray ends them where there are more processes than CPUs otherwise). A head
# reports no usage to Ray's makers, and remembers 1,000 finished tasks, not the 100,000 with which it would grow for days.
ENV PYTHONPATH=/home/ray/tailorpo \
    RAY_AUTH_MODE=token \
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 \
    RAY_JOB_STOP_WAIT_TIME_S=120 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_task_events_max_num_task_in_gcs=1000 \
    RAY_num_workers_soft_limit=64
