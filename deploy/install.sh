#!/bin/sh
# Install what an image needs into a new virtual environment, from a copy of this repository.
# The Dockerfile's build stages run it; so do the tests, without Docker.
#
#   deploy/install.sh PREFIX cpu    with tritonserver itself, from the nvidia-pytriton wheel
#   deploy/install.sh PREFIX gpu    for NVIDIA's Triton container, which has the server
#   deploy/install.sh PREFIX plan   for NVIDIA's TensorRT container, which has the plan builder
#
# PYTHON is the interpreter to build on (python3). The environment gets no pip and no compiler.
set -eu

prefix=${1:?usage: deploy/install.sh PREFIX cpu|gpu|plan}
kind=${2:?usage: deploy/install.sh PREFIX cpu|gpu|plan}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
unset PIP_CONSTRAINT  # NVIDIA's containers set one of their own

install_packages() {
    "$python" -m pip --python "$prefix/bin/python" install --disable-pip-version-check \
        --quiet --root-user-action ignore --only-binary :all: "$@"
}

see_the_containers_packages=
case $kind in
    cpu | gpu) ;;
    plan) see_the_containers_packages=--system-site-packages ;;  # its Python package tensorrt
    *) echo "deploy/install.sh: no such kind: $kind (cpu, gpu or plan)" >&2; exit 2 ;;
esac
"$python" -m venv --without-pip $see_the_containers_packages "$prefix"

# What serving imports, and no more: training and export would add PyTorch.
install_packages -c constraints.txt numpy pillow 'tritonclient[grpc]' tqdm
if [ "$kind" != plan ]; then
    install_packages -c constraints.txt onnxruntime  # the profile cpu, in both images
fi
if [ "$kind" = cpu ]; then
    install_packages -c constraints.txt --no-deps nvidia-pytriton  # only its binaries are used
fi
rm -rf client/build  # or setuptools would add what an earlier build left there
# Without what they declare: hnswlib needs a compiler, and only clients search.
install_packages --no-deps ./client .

cp deploy/serve.sh "$prefix/bin/vibematch-server"
chmod 755 "$prefix/bin/vibematch-server"
if [ "$kind" = plan ]; then
    sed "1s|.*|#!$prefix/bin/python3|" deploy/make_plan.py > "$prefix/bin/vibematch-plan"
    chmod 755 "$prefix/bin/vibematch-plan"
fi
