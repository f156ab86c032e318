"""python -m fastdiff"""

from .cli import main

raise SystemExit(main())
