# The server and its replicas for deploy/kuberay.yaml: Ray's own image, whose probes KubeRay calls, with ideoflow in it.
#
#     docker build -f deploy/ray.Dockerfile -t registry.example.org/ideoflow-ray .
#
# Ray and Python must have one version in all containers of a cluster. Not built where ideoflow is developed, which has no
# Docker.
ARG RAY=2.60.0-py311-gpu
FROM rayproject/ray:${RAY}
WORKDIR /src
COPY --chown=ray:users pyproject.toml README.md LICENSE ./
COPY --chown=ray:users requirements requirements
COPY --chown=ray:users src src
RUN pip install --no-cache-dir --constraint requirements/constraints.txt torch==2.13.0 '.[serve,quant,postgres,ray]'
WORKDIR /data
ENV PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
