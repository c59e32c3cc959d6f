from tests.connectors.ls_fixture import label_studio

__all__ = ["label_studio"]
