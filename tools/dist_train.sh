#!/usr/bin/env bash
exec python "${0%.sh}.py" "$@" # for those who know it by this name
